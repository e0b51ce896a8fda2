"""The examples in the docstrings of evaluations/study run."""

import doctest
import importlib
import pkgutil

import pytest

from evaluations import study

MODULES = sorted(module.name for module in pkgutil.iter_modules(study.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tried = doctest.testmod(importlib.import_module(f"evaluations.study.{name}"))
    assert tried.failed == 0
