"""What the project needs is said once, in pyproject.toml, each with the oldest version that it was tried with."""

import ast
import re
import sys

import pytest
import yaml
from helpers import ROOT

tomllib = pytest.importorskip("tomllib", reason="pyproject.toml is read with Python 3.11 or later")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"hydra-core": "hydra", "pillow": "PIL", "pyyaml": "yaml"}  # where a package's module has another name


def name(requirement):
    return re.split(r"[<>=!~ ;\[]", requirement)[0].lower()


def test_every_dependency_has_a_lower_bound():
    optional = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
    for requirement in [*PROJECT["dependencies"], *optional]:
        assert re.search(r">=\d+\.\d+", requirement), requirement


def test_an_extra_for_users_has_the_bounds_of_the_tests():
    extras = PROJECT["optional-dependencies"]
    assert {requirement for extra, own in extras.items() if extra != "test" for requirement in own} <= set(extras["test"])


def test_what_is_imported_is_what_is_declared():
    imported = set()
    for path in (file for package in ("sag", "evaluations", "scripts") for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    extras = [r for extra, own in PROJECT["optional-dependencies"].items() if extra != "test" for r in own]
    declared, optional = (
        {MODULES.get(name(r), name(r).replace("-", "_")) for r in rs} for rs in (PROJECT["dependencies"], extras)
    )
    foreign = imported - set(sys.stdlib_module_names) - {"sag", "evaluations", "scripts", "configs"}
    assert declared <= foreign <= declared | optional


def test_the_conda_environment_is_the_same():
    """It names no package itself, so that no bound is stated twice."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, installed = environment["dependencies"]
    assert (pip, installed) == ("pip", {"pip": ["-e .[test]"]})
    oldest, version = (tuple(map(int, re.findall(r"\d+", text))) for text in (PROJECT["requires-python"], python))
    assert version >= oldest
