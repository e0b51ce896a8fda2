"""The function behind scripts/evaluate.py: values in, values out, nothing printed."""

import ast
import json
import subprocess

import numpy as np
import pytest
from helpers import ROOT, TinyNetwork, random_images

from evaluations.extractors import ModuleExtractor
from evaluations.published import Published
from evaluations.score_files import find_reference, score_files
from sag import records


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=random_images(0, 60))
    np.savez(tmp_path / "reference.npz", arr_0=random_images(1, 70))
    return str(tmp_path / "samples.npz"), str(tmp_path / "reference.npz")


def scored(*files, **options):
    return score_files(*files, **{"extractor": ModuleExtractor("tiny", TinyNetwork()), "device": "cpu", **options})


def test_values_come_back_and_nothing_is_printed(files, tmp_path, capsys):
    found = scored(*files, settings={"kid_subsets": 3})
    assert capsys.readouterr() == ("", "")
    assert list(found.values)[:3] == ["fid", "sfid", "is"]
    assert "kid_std" in found.values
    assert (found.count, found.new) == (60, True)
    assert found.record["metrics"] == {f"{name}_60": value for name, value in found.values.items()}
    assert json.loads(found.path.read_text()) == found.record
    again = scored(*files, settings={"kid_subsets": 3})
    assert (again.new, again.values, again.identity) == (False, found.values, found.identity)


def test_settings_of_metrics_that_are_not_measured_do_not_count(files, tmp_path):
    out = tmp_path / "scores.json"
    first = scored(*files, metrics=["is"], settings={"neighbours": 4}, out=out)
    assert set(first.identity["settings"]) == {"metrics", "is_splits", "is_shuffle"}
    assert not scored(*files, metrics=["is"], settings={"neighbours": 5}, out=out).new
    # a file of an earlier version names the settings of all metrics
    facts = json.loads(out.read_text())
    facts["identity"]["settings"]["kid_subsets"] = 100
    out.write_text(json.dumps(facts))
    assert not scored(*files, metrics=["is"], out=out).new
    with pytest.raises(ValueError, match="is there already, and does not hold scores"):
        scored(*files, metrics=["is"], settings={"is_splits": 2}, out=out)


def test_a_reference_is_needed_by_those_metrics_only_that_need_one(files):
    found = scored(files[0], metrics=["is"])
    assert set(found.values) == {"is"}
    assert (found.identity["reference"], found.record["reference"]) == (None, "none")
    with pytest.raises(ValueError, match=r"reference= is missing, and no config next to .*samples\.npz names one"):
        scored(files[0], metrics=["is", "fid"])


@pytest.mark.parametrize(
    "text", ["", "- a\n- list", "model: 3", "model: {reference: 3}", "model: {", "\x00", "model:\n  reference: null"]
)
def test_a_config_of_somebody_else_names_no_reference(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert find_reference(None, tmp_path / "samples.npz") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": "many"}, "batch_size must be a whole number, got 'many'"),
        ({"metrics": "fid"}, "metrics must be a list of names, got 'fid'"),
        ({"settings": {"neighbors": 3}}, "unknown setting 'neighbors' of the metrics; expected any of"),
        ({"device": "tpu"}, "unknown device 'tpu'; expected auto, cpu, cuda"),
        ({"device": None}, "unknown device None; expected auto, cpu, cuda"),
        ({"published": Published("paper", "inception", 60, {})}, "paper used inception; the extractor here is tiny-"),
    ],
)
def test_bad_arguments_are_one_sentence_and_leave_no_file(files, tmp_path, options, message):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message) as caught:
        scored(*files, **options)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_the_commit_is_that_of_this_repository_only(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    environment = tmp_path / "environment"
    environment.mkdir()
    monkeypatch.setattr(records, "ROOT", environment)
    assert records._commit() is None


def test_the_package_needs_no_scripts_and_only_what_reads_configs_needs_hydra():
    reads_configs = {"build.py", "evaluate_config.py", "study"}
    for path in (ROOT / "evaluations").rglob("*.py"):
        foreign = {"scripts"} | ({"hydra", "omegaconf"} if reads_configs.isdisjoint(path.parts) else set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & foreign, path
