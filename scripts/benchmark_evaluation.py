"""The part of the benchmark that measures the evaluation: each stage beside a plain NumPy or SciPy version, in the same run."""

from typing import Any

import numpy as np
import torch
from scipy.linalg import sqrtm

from evaluations.frechet import Statistics, frechet_distance
from evaluations.neighbours import precision_recall
from sag.devices import seconds
from sag.memory import peak_memory

DIM = 2048
REFERENCE = 10_000
ROWS = 100  # of brute force by differences, which is timed on so many rows and scaled to all


def benchmark_evaluation(samples: list[int], batch_size: int, device: torch.device) -> dict[str, Any]:
    """Fréchet distance, precision and recall of `samples` random features, and Inception; prints a line for each."""
    ours = [_precision_recall(count, device) for count in samples]  # all before NumPy leaves holes in the memory
    facts: dict[str, Any] = {"precision_recall": [_beside_numpy(row, device) for row in ours]}
    facts["frechet"] = _frechet()
    facts["inception"] = _inception(batch_size, device)
    return facts


def _features(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randn(DIM, generator=torch.Generator().manual_seed(0)).mul_(0.3).exp_()  # the same for all
    return torch.randn(count, DIM, generator=generator).mul_(scales)


def _precision_recall(count: int, device: torch.device) -> dict[str, Any]:
    x, y = _features(1, count).to(device), _features(2, REFERENCE).to(device)
    before = peak_memory(lambda: None, device)
    times: list[float] = []
    peak = peak_memory(lambda: times.append(seconds(lambda: precision_recall(x, y), device)), device)
    return {"samples": count, "reference": REFERENCE, "seconds": times[0], "peak_memory": peak, "memory_before": before}


def _beside_numpy(facts: dict[str, Any], device: torch.device) -> dict[str, Any]:
    count, own, peak, before = (facts[key] for key in ("samples", "seconds", "peak_memory", "memory_before"))
    arrays = _features(1, count).numpy(), _features(2, REFERENCE).numpy()
    differences = sum(
        seconds(lambda a=a, b=b: [((row - b) ** 2).sum(1) for row in a[:ROWS]], device) * len(a) / ROWS  # type: ignore[misc]
        for a, b in ((arrays[0], arrays[0]), (arrays[1], arrays[1]), arrays)
    )
    facts["seconds_of_differences"] = differences
    line = f"precision and recall, {count} x {REFERENCE}, {DIM} dimensions: {own:.1f} s"
    line += f", peak {peak / 2**20:.0f} MiB, {before / 2**20:.0f} of them before the call" if peak and before else ""
    line += f"; NumPy by differences {differences:.0f} s (from {ROWS} rows), {differences / own:.0f} times as long"
    if count <= REFERENCE:
        products = seconds(lambda: _numpy_products(*arrays), device)
        facts["seconds_of_products"] = products
        line += f"; NumPy by matrix products in float64 {products:.1f} s, {products / own:.1f} times as long"
    print(line, flush=True)
    return facts


def _numpy_products(samples: np.ndarray, reference: np.ndarray, k: int = 3) -> tuple[float, float]:
    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(np.float64), b.astype(np.float64)
        squared: np.ndarray = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None, :]
        return squared

    near_reference, near_samples = (np.partition(distances(v, v), k, axis=1)[:, k] for v in (reference, samples))
    across = distances(samples, reference)
    return float((across <= near_reference).any(1).mean()), float((across <= near_samples[:, None]).any(0).mean())


def _frechet() -> dict[str, Any]:
    a, b = (Statistics(x.mean(0), np.cov(x, rowvar=False)) for x in (_features(i, 5000).double().numpy() for i in (1, 2)))
    cpu = torch.device("cpu")
    own = min(seconds(lambda: frechet_distance(a, b), cpu) for _ in range(3))
    root = []
    theirs = seconds(lambda: root.append(sqrtm(a.covariance @ b.covariance)), cpu)
    delta = a.mean - b.mean
    truth = delta @ delta + np.trace(a.covariance + b.covariance - 2 * root[0].real)
    error = abs(frechet_distance(a, b) / truth - 1)
    print(
        f"Fréchet distance, {DIM} dimensions, from statistics: {own:.2f} s; scipy.linalg.sqrtm {theirs:.2f} s, "
        f"{theirs / own:.1f} times as long; relative difference {error:.1e}",
        flush=True,
    )
    return {"seconds": own, "seconds_of_sqrtm": theirs, "relative_difference": error}


def _inception(batch_size: int, device: torch.device) -> dict[str, Any]:
    from evaluations.inception import Inception  # here, as it brings torchvision into the memory that is measured above

    network = Inception("random").to(device)
    images = torch.randint(0, 256, (batch_size, 3, 64, 64), dtype=torch.uint8, device=device)
    network(images)
    rate = batch_size / min(seconds(lambda: network(images), device) for _ in range(3))
    print(f"Inception features, batch {batch_size}: {rate:.1f} images/s")
    return {"batch_size": batch_size, "images_per_second": rate}
