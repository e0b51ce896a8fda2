"""The benchmark measures what it says, on a model small enough to run here."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from scripts import benchmark, benchmark_cluster, benchmark_evaluation


def test_the_benchmark_writes_a_row_for_every_case(tmp_path, run_script):
    arguments = [
        "model=fashion32",
        "batch_size=2",
        "rounds=1",
        "compile=[false]",
        "precisions=[float32,bfloat16]",
        "device=cpu",
        f"out={tmp_path}",
    ]
    printed = run_script(benchmark.main, "benchmark", benchmark.BenchmarkConfig, *arguments)
    assert "sag + classifier" in printed
    rows = json.loads((tmp_path / "fashion32.json").read_text())["rows"]
    assert [(row["guidance"], row["precision"], row["passes_per_step"]) for row in rows] == [
        ("none", "float32", 1), ("sag", "float32", 2), ("sag + classifier", "float32", 2),
        ("none", "bfloat16", 1), ("sag", "bfloat16", 2), ("sag + classifier", "bfloat16", 2),
    ]  # fmt: skip
    assert rows[1]["flop_per_step"] == pytest.approx(2 * rows[0]["flop_per_step"], rel=0.01)
    assert all(row["seconds_per_step"] > 0 and row["peak_memory"] > 1e8 for row in rows)


def test_flop_of_a_convolution_are_counted_right():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        torch.nn.Conv2d(3, 8, 3, padding=1)(torch.zeros(2, 3, 10, 10))
    assert counter.get_total_flops() == 2 * 2 * 8 * 100 * 27


def test_the_evaluation_is_measured_beside_numpy_and_scipy(tmp_path, run_script, monkeypatch):
    monkeypatch.setattr(benchmark_evaluation, "DIM", 64)
    monkeypatch.setattr(benchmark_evaluation, "REFERENCE", 300)
    arguments = ["part=evaluation", "samples=[200,400]", "device=cpu", f"out={tmp_path}"]
    printed = run_script(benchmark.main, "benchmark", benchmark.BenchmarkConfig, *arguments)
    assert printed.count("precision and recall") == 2
    facts = json.loads((tmp_path / "evaluation.json").read_text())
    assert facts["frechet"]["relative_difference"] < 1e-9
    assert [row["samples"] for row in facts["precision_recall"]] == [200, 400]
    assert "seconds_of_products" in facts["precision_recall"][0]


@pytest.mark.parametrize(
    ("argument", "message"), [("part=training", "part must be sampling, evaluation or cluster"), ("samples=[3]", "at least 10")]
)
def test_bad_requests_are_one_sentence(run_script, argument, message):
    with pytest.raises(SystemExit, match=message):
        run_script(benchmark.main, "benchmark", benchmark.BenchmarkConfig, argument)


@pytest.mark.slow
def test_memory_of_precision_and_recall(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), "part=evaluation", "samples=[10000,50000]", "device=cpu"]
    subprocess.run([*command, f"out={tmp_path}"], check=True)
    small, large = json.loads((tmp_path / "evaluation.json").read_text())["precision_recall"]
    assert small["peak_memory"] < 1e9
    assert large["peak_memory"] < 1.5e9


@pytest.mark.slow
def test_memory_of_packing_is_flat(tmp_path):
    facts = benchmark_cluster.packing(tmp_path, 10000, 256, 64)
    assert facts["peak_memory"] - facts["memory_before"] < 300e6
