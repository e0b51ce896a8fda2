"""The benchmark measures what it says, on a model small enough to run here."""

import json

import benchmark
import pytest
import torch


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
    assert "classifier guidance is left out" in printed
    rows = json.loads((tmp_path / "fashion32.json").read_text())["rows"]
    assert [(row["guidance"], row["precision"], row["passes_per_step"]) for row in rows] == [
        ("none", "float32", 1), ("sag", "float32", 2), ("none", "bfloat16", 1), ("sag", "bfloat16", 2)
    ]  # fmt: skip
    assert rows[1]["flop_per_step"] == pytest.approx(2 * rows[0]["flop_per_step"], rel=0.01)
    assert all(row["seconds_per_step"] > 0 and row["peak_memory"] > 1e8 for row in rows)


def test_flop_of_a_convolution_are_counted_right():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        torch.nn.Conv2d(3, 8, 3, padding=1)(torch.zeros(2, 3, 10, 10))
    assert counter.get_total_flops() == 2 * 2 * 8 * 100 * 27
