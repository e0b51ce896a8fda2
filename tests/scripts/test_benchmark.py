"""The benchmark as a user runs it, on a model small enough to run here."""

import functools
import json
import subprocess
import sys

import pytest
from helpers import ROOT

from evaluations.benchmark import cluster, evaluation
from scripts import benchmark


@pytest.fixture
def script(run_script, tmp_path):
    return functools.partial(run_script, benchmark.main, "benchmark", benchmark.BenchmarkConfig, f"out={tmp_path}")


def test_sampling_is_a_table_and_a_row_for_every_case(script, tmp_path):
    printed = script("model=fashion32", "batch_size=2", "rounds=1", "compile=[false]", "precisions=[float32]", "device=cpu")
    assert printed.startswith("fashion32, ")
    assert "sag + classifier" in printed
    facts = json.loads((tmp_path / "fashion32.json").read_text())
    assert [facts[key] for key in ("model", "batch_size", "rounds", "steps")] == ["fashion32", 2, 1, 50]
    assert [(row["guidance"], row["precision"], row["passes_per_step"]) for row in facts["rows"]] == [
        ("none", "float32", 1), ("sag", "float32", 2), ("sag + classifier", "float32", 2),
    ]  # fmt: skip


def test_a_model_without_a_classifier(script, tmp_path):
    small = ["model=fashion32_weak", "~classifier", "batch_size=1", "rounds=1", "compile=[false]", "precisions=[float32]"]
    printed = script(*small, "device=cpu")
    assert "comes with no classifier: classifier guidance is left out\n" in printed
    (path,) = tmp_path.glob("*.json")
    assert [row["guidance"] for row in json.loads(path.read_text())["rows"]] == ["none", "sag"]


def test_the_evaluation_is_a_line_for_each_stage(script, tmp_path, monkeypatch):
    small = functools.partial(evaluation.benchmark_evaluation, reference=300, dimensions=64)
    monkeypatch.setattr(evaluation, "benchmark_evaluation", small)
    printed = script("part=evaluation", "samples=[200,400]", "device=cpu")
    assert [line.split(",")[0] for line in printed.splitlines()[1:-1]] == [
        "precision and recall", "precision and recall", "Fréchet distance", "Inception features"
    ]  # fmt: skip
    facts = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["samples"] for row in facts["precision_recall"]] == [200, 400]
    assert facts["precision_recall"][0]["seconds_of_products"] > 0


def test_processes_are_measured_with_the_program_that_samples(script, tmp_path, monkeypatch):
    def measured(program, images):
        assert program == ROOT / "scripts/sample.py"
        packing = cluster.Packing(images, 1.0, 2.0, 3 * 2**20, 2**20)
        both = {1: cluster.Seconds(8.0, 8.0), 2: cluster.Seconds(4.0, 8.5)}
        return cluster.Cluster("steps=2", both, 2.0, True, 0.015, packing)

    monkeypatch.setattr(cluster, "benchmark_cluster", measured)
    assert "2.00 times as fast; the bytes are the same" in script("part=cluster", "samples=[10,20]", "device=cpu")
    facts = json.loads((tmp_path / "cluster.json").read_text())
    assert facts["processes"]["2"] == {"wall_seconds": 4.0, "seconds": 8.5}
    assert facts["packing"]["images"] == 10


@pytest.mark.parametrize(
    ("argument", "message"),
    [("part=training", "part must be sampling, evaluation, cluster or processor"), ("samples=[3]", "at least 10")],
)
def test_bad_requests_are_one_sentence(script, argument, message):
    with pytest.raises(SystemExit, match=message):
        script(argument)


@pytest.mark.slow
def test_memory_of_precision_and_recall(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), "part=evaluation", "samples=[10000,50000]", "device=cpu"]
    subprocess.run([*command, f"out={tmp_path}"], check=True)
    small, large = json.loads((tmp_path / "evaluation.json").read_text())["precision_recall"]
    assert small["peak_memory"] < 1e9
    assert large["peak_memory"] < 1.5e9


@pytest.mark.slow
def test_the_processor_of_diffusers_is_measured(script, tmp_path):
    printed = script("part=processor", "rounds=1", "device=cpu")
    assert "the processor adds " in printed
    facts = json.loads((tmp_path / "processor.json").read_text())
    assert all(facts[f"seconds_{name}"] > 0 for name in ("plain", "prepared", "sag"))
