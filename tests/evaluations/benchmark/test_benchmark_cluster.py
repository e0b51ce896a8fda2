"""The cost of shards and packing; the example of `benchmark_cluster`, which takes longer, runs with the slow ones."""

import pytest

from evaluations.benchmark.cluster import Cluster, Packing, Seconds, benchmark_cluster, measure_packing


def test_packing_is_measured(tmp_path):
    found = measure_packing(tmp_path, 20, 32, 8)
    assert found.images == 20
    assert min(found.write_seconds, found.pack_seconds) > 0
    assert found.peak_memory >= found.memory_before > 1e7
    assert (tmp_path / "packed.npz").exists()


def test_the_result_as_text():
    packing = Packing(10, 1.0, 2.0, 3 * 2**20, 2**20)
    found = Cluster("steps=2", {1: Seconds(8.0, 8.0), 2: Seconds(4.0, 8.5)}, 2.0, True, 0.015, packing)
    assert found.describe().splitlines() == [
        "steps=2, processes of one thread: 1 takes 8.0 s, 2 take 4.0 s,",
        "    2.00 times as fast; the bytes are the same",
        "    writing shards and packing them takes 1.50 % of the sampling",
        "10 images of 256x256: shards written in 1.0 s, packed in 2.0 s",
        "    (300.00 ms per image together), peak 3 MiB, 1 of them before",
    ]


def test_numbers_that_are_too_small_are_one_sentence():
    with pytest.raises(ValueError, match=r"^samples must be at least 10, got 3$"):
        benchmark_cluster("sample.py", 3)


@pytest.mark.slow
def test_memory_of_packing_is_flat(tmp_path):
    found = measure_packing(tmp_path, 10000, 256, 64)
    assert found.peak_memory - found.memory_before < 300e6
