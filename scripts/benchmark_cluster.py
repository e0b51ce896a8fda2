"""What several processes gain, and what shards and packing cost, measured on the bundled model."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sag import storage
from sag.memory import peak_memory
from sag.records import ROOT
from sag.sampling.shards import Shard, check_shards, pack, write_shard

SAMPLES, SIZE, BATCH = 256, 32, 16
RUN = [f"num_samples={SAMPLES}", f"batch_size={BATCH}", "sampler.steps=25", "device=cpu"]
LARGE_SIZE, LARGE_BATCH = 256, 64  # of the images whose packing is measured


def benchmark_cluster(count: int) -> dict[str, Any]:
    """Scaling from one to two processes of one thread; seconds and memory of writing and packing `count` images of 256x256."""
    with tempfile.TemporaryDirectory() as folder:
        facts: dict[str, Any] = {
            "run": " ".join(RUN),
            "processes": {world: _sampled(Path(folder) / str(world), world) for world in (1, 2)},
        }
        one, two = (facts["processes"][world] for world in (1, 2))
        facts["scaling"] = one["wall_seconds"] / two["wall_seconds"]
        facts["same_bytes"] = one.pop("npz") == two.pop("npz")
        small = packing(Path(folder) / "small", SAMPLES, SIZE, BATCH)
        facts["overhead"] = (small["write_seconds"] + small["pack_seconds"]) / one["seconds"]
        facts["packing"] = packing(Path(folder) / "large", count, LARGE_SIZE, LARGE_BATCH)
    return facts


def _sampled(out: Path, world: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}", str(ROOT / "scripts/sample.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *RUN, f"out={out}"], env=environment, check=True, capture_output=True)
    record = json.loads((out / "record.json").read_text())
    (npz,) = out.glob("samples_*.npz")
    return {key: record[key] for key in ("wall_seconds", "seconds")} | {"npz": npz.read_bytes()}


def packing(path: Path, count: int, size: int, batch: int) -> dict[str, Any]:
    """Measure the seconds of writing and packing random images, and the memory before packing and at its peak.

    Args:
        path: The folder of the shards.
        count: Number of images. They are random, so no file system can compress them.
        size: Height and width of the images.
        batch: Number of images per shard.

    Returns:
        Seconds and bytes by name.
    """
    folder, rng = storage.LocalFolder(path), np.random.default_rng(0)
    names, written = [], 0.0
    for start in range(0, count, batch):
        rows = np.arange(start, min(start + batch, count))
        images = rng.integers(0, 256, (len(rows), size, size, 3), dtype=np.uint8)
        names.append(f"shards/{start:08d}.npz")
        begin = time.perf_counter()
        write_shard(folder, names[-1], Shard(images, rows, rows, "benchmark"))
        written += time.perf_counter() - begin

    def join() -> None:
        contents = check_shards(folder, names, range(count), "benchmark")
        pack(folder, names, contents, "packed.npz")

    before = peak_memory(lambda: None, torch.device("cpu"))
    begin = time.perf_counter()
    peak = peak_memory(join, torch.device("cpu"))
    packed = time.perf_counter() - begin
    return {
        "images": count,
        "write_seconds": written,
        "pack_seconds": packed,
        "peak_memory": peak,
        "memory_before": before,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts as text."""
    one, two, packing = facts["processes"][1], facts["processes"][2], facts["packing"]
    bytes_are = "the same" if facts["same_bytes"] else "DIFFERENT"
    per_image = (packing["write_seconds"] + packing["pack_seconds"]) / packing["images"]
    peak, before = ((packing[key] or 0) / 2**20 for key in ("peak_memory", "memory_before"))
    return [
        f"{facts['run']}, processes of one thread: 1 takes {one['wall_seconds']:.1f} s, 2 take {two['wall_seconds']:.1f} s,",
        f"    {facts['scaling']:.2f} times as fast; the bytes are {bytes_are}",
        f"    writing shards and packing them takes {100 * facts['overhead']:.2f} % of the sampling",
        f"{packing['images']} images of {LARGE_SIZE}x{LARGE_SIZE}: shards written in {packing['write_seconds']:.1f} s, "
        f"packed in {packing['pack_seconds']:.1f} s",
        f"    ({1000 * per_image:.2f} ms per image together), peak {peak:.0f} MiB, {before:.0f} of them before",
    ]
