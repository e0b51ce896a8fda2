"""What several processes gain, and what shards and packing cost, measured on the bundled model."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluations.metric import check_count
from sag.memory import peak_memory
from sag.sampling.shards import Shard, check_shards, pack, write_shard
from sag.storage import LocalFolder

SAMPLES, SIZE, BATCH, STEPS = 256, 32, 16, 25
LARGE_SIZE, LARGE_BATCH = 256, 64  # of the images whose packing is measured


@dataclass(frozen=True)
class Packing:
    """What shards and packing cost.

    Attributes:
        images: How many images were written and packed.
        write_seconds: Of writing them as shards.
        pack_seconds: Of packing the shards.
        peak_memory: Bytes at the peak of packing; None where the system does not tell.
        memory_before: Bytes before packing, most of them PyTorch's.
    """

    images: int
    write_seconds: float
    pack_seconds: float
    peak_memory: int | None
    memory_before: int | None


@dataclass(frozen=True)
class Seconds:
    """What a run of one or more processes took.

    Attributes:
        wall_seconds: From the first shard to the last.
        seconds: Of all processes together.
    """

    wall_seconds: float
    seconds: float


@dataclass(frozen=True)
class Cluster:
    """What processes gain and cost.

    Attributes:
        run: What was sampled.
        processes: What it took, by the number of processes.
        scaling: How many times as fast two processes are as one.
        same_bytes: Whether the samples are equal.
        overhead: The share of shards and packing in the sampling.
        packing: The cost of larger images.
    """

    run: str
    processes: Mapping[int, Seconds]
    scaling: float
    same_bytes: bool
    overhead: float
    packing: Packing

    def describe(self) -> str:
        """Return some lines for people."""
        one, two, packing = self.processes[1], self.processes[2], self.packing
        bytes_are = "the same" if self.same_bytes else "DIFFERENT"
        per_image = (packing.write_seconds + packing.pack_seconds) / packing.images
        peak, before = ((value or 0) / 2**20 for value in (packing.peak_memory, packing.memory_before))
        return "\n".join([
            f"{self.run}, processes of one thread: 1 takes {one.wall_seconds:.1f} s, 2 take {two.wall_seconds:.1f} s,",
            f"    {self.scaling:.2f} times as fast; the bytes are {bytes_are}",
            f"    writing shards and packing them takes {100 * self.overhead:.2f} % of the sampling",
            f"{packing.images} images of {LARGE_SIZE}x{LARGE_SIZE}: shards written in {packing.write_seconds:.1f} s, "
            f"packed in {packing.pack_seconds:.1f} s",
            f"    ({1000 * per_image:.2f} ms per image together), peak {peak:.0f} MiB, {before:.0f} of them before",
        ])  # fmt: skip


def benchmark_cluster(program: str | Path, images: int = 10_000, samples: int = SAMPLES, steps: int = STEPS) -> Cluster:
    """Measure one and two processes of one thread, and the writing and packing of shards.

    Example:
        >>> from importlib.util import find_spec
        >>> from evaluations.benchmark.cluster import benchmark_cluster
        >>> found = benchmark_cluster(find_spec("scripts.sample").origin, images=10, samples=32, steps=1)
        >>> found.same_bytes, sorted(found.processes)
        (True, [1, 2])

    Args:
        program: The program that samples, started as a user starts it.
        images: The number of images of 256 x 256 pixels that are written and packed.
        samples: The number of samples of the bundled model.
        steps: The steps of the sampler.

    Returns:
        The measurements.

    Raises:
        ValueError: If a number is too small.
        subprocess.CalledProcessError: If the program fails.
    """
    for name, count, least in (("samples", images, 10), ("samples", samples, 1), ("steps", steps, 1)):
        check_count(name, count, least)
    run = [f"num_samples={samples}", f"batch_size={BATCH}", f"sampler.steps={steps}", "device=cpu"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, two = (_sampled([str(program), *run], folder / str(world), world) for world in (1, 2))
        small = measure_packing(folder / "small", samples, SIZE, BATCH)
        return Cluster(
            run=" ".join(run),
            processes={1: one, 2: two},
            scaling=one.wall_seconds / two.wall_seconds,
            same_bytes=len({path.read_bytes() for path in folder.glob("[12]/samples_*.npz")}) == 1,
            overhead=(small.write_seconds + small.pack_seconds) / one.seconds,
            packing=measure_packing(folder / "large", images, LARGE_SIZE, LARGE_BATCH),
        )


def _sampled(command: list[str], out: Path, world: int) -> Seconds:
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *command, f"out={out}"], env=environment, check=True, capture_output=True)
    record = json.loads((out / "record.json").read_text())
    return Seconds(record["wall_seconds"], record["seconds"])


def measure_packing(path: Path, count: int, size: int, batch: int) -> Packing:
    """Measure the seconds of writing and packing random images, and the memory before packing and at its peak.

    Example:
        >>> from pathlib import Path
        >>> from evaluations.benchmark.cluster import measure_packing
        >>> measure_packing(Path("packing"), 100, 32, 16).images
        100

    Args:
        path: The folder of the shards.
        count: Number of images. They are random, so no file system can compress them.
        size: Height and width of the images.
        batch: Number of images per shard.

    Returns:
        The measurements.
    """
    folder, rng = LocalFolder(path), np.random.default_rng(0)
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
    return Packing(count, written, packed, peak, before)
