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
from common import ROOT
from measure import peak_memory

from sag import storage

RUN = ["num_samples=256", "batch_size=16", "sampler.steps=25", "device=cpu"]
SIZE, BATCH = 256, 64  # of the images that are packed


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
        facts["packing"] = _packed(Path(folder) / "packed", count)
    return facts


def _sampled(out: Path, world: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}", str(ROOT / "scripts/sample.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *RUN, f"out={out}"], env=environment, check=True, capture_output=True)
    record = json.loads((out / "record.json").read_text())
    (npz,) = out.glob("samples_*.npz")
    return {key: record[key] for key in ("wall_seconds", "seconds", "packing_seconds")} | {"npz": npz.read_bytes()}


def _packed(path: Path, count: int) -> dict[str, Any]:
    """Random images, which no file system shrinks."""
    folder, rng = storage.LocalFolder(path), np.random.default_rng(0)
    names, written = [], 0.0
    for start in range(0, count, BATCH):
        rows = np.arange(start, min(start + BATCH, count))
        images = rng.integers(0, 256, (len(rows), SIZE, SIZE, 3), dtype=np.uint8)
        names.append(f"shards/{start:08d}.npz")
        begin = time.perf_counter()
        storage.write_shard(folder, names[-1], storage.Shard(images, rows, rows, "benchmark"))
        written += time.perf_counter() - begin
    begin = time.perf_counter()
    peak = peak_memory(lambda: storage.pack(folder, names, range(count), "benchmark", "packed.npz"), torch.device("cpu"))
    return {"images": count, "write_seconds": written, "pack_seconds": time.perf_counter() - begin, "peak_memory": peak}


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts as text."""
    one, two, packing = facts["processes"][1], facts["processes"][2], facts["packing"]
    bytes_are = "the same" if facts["same_bytes"] else "DIFFERENT"
    per_image = (packing["write_seconds"] + packing["pack_seconds"]) / packing["images"]
    peak = (packing["peak_memory"] or 0) / 2**20
    return [
        f"{facts['run']}, processes of one thread: 1 takes {one['wall_seconds']:.1f} s, 2 take {two['wall_seconds']:.1f} s,",
        f"    {facts['scaling']:.2f} times as fast; the bytes are {bytes_are}",
        f"    packing takes {100 * one['packing_seconds'] / one['seconds']:.2f} % of the sampling",
        f"{packing['images']} images of {SIZE}x{SIZE}: shards written in {packing['write_seconds']:.1f} s, packed in "
        f"{packing['pack_seconds']:.1f} s",
        f"    ({1000 * per_image:.2f} ms per image together), peak {peak:.0f} MiB",
    ]
