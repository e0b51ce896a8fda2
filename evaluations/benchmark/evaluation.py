"""The speed and memory of the evaluation: each stage next to a plain NumPy or SciPy version, in the same run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from evaluations.frechet import Statistics, frechet_distance
from evaluations.metric import check_count
from evaluations.neighbours import precision_recall
from sag.devices import pick_device, seconds
from sag.memory import peak_memory

ROWS = 100  # of brute force by differences, which is timed on so many rows and scaled to all


@dataclass(frozen=True)
class PrecisionRecall:
    """What precision and recall of random features cost.

    Attributes:
        samples: How many features are scored.
        reference: How many features they are compared with.
        seconds: Of this project.
        peak_memory: Bytes at the peak; None where the system does not tell.
        memory_before: Bytes before the call.
        dimensions: The dimensions of a feature.
        seconds_of_differences: Of NumPy with the difference of every pair, from `ROWS` rows.
        seconds_of_products: Of NumPy with matrix products in float64; None where they do not fit.
    """

    samples: int
    reference: int
    seconds: float
    peak_memory: int | None
    memory_before: int | None
    dimensions: int
    seconds_of_differences: float = float("nan")
    seconds_of_products: float | None = None

    def describe(self) -> str:
        """Return one line for people."""
        own, peak, before = self.seconds, self.peak_memory, self.memory_before
        line = f"precision and recall, {self.samples} x {self.reference}, {self.dimensions} dimensions: {own:.1f} s"
        line += f", peak {peak / 2**20:.0f} MiB, {before / 2**20:.0f} of them before the call" if peak and before else ""
        differences, products = self.seconds_of_differences, self.seconds_of_products
        line += f"; NumPy by differences {differences:.0f} s (from {ROWS} rows), {differences / own:.0f} times as long"
        if products is not None:
            line += f"; NumPy by matrix products in float64 {products:.1f} s, {products / own:.1f} times as long"
        return line


@dataclass(frozen=True)
class Frechet:
    """What the Fréchet distance of two statistics costs.

    Attributes:
        seconds: Of this project.
        seconds_of_sqrtm: Of `scipy.linalg.sqrtm`.
        relative_difference: Between the two distances.
        dimensions: The dimensions of a feature.
    """

    seconds: float
    seconds_of_sqrtm: float
    relative_difference: float
    dimensions: int

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"Fréchet distance, {self.dimensions} dimensions, from statistics: {self.seconds:.2f} s; scipy.linalg.sqrtm "
            f"{self.seconds_of_sqrtm:.2f} s, {self.seconds_of_sqrtm / self.seconds:.1f} times as long; relative difference "
            f"{self.relative_difference:.1e}"
        )


@dataclass(frozen=True)
class InceptionSpeed:
    """The speed of Inception.

    Attributes:
        batch_size: How many images the network gets at once.
        images_per_second: Images of 64 x 64 pixels.
    """

    batch_size: int
    images_per_second: float

    def describe(self) -> str:
        """Return one line for people."""
        return f"Inception features, batch {self.batch_size}: {self.images_per_second:.1f} images/s"


@dataclass(frozen=True)
class Evaluation:
    """What the evaluation costs.

    Attributes:
        precision_recall: Precision and recall, for each number of samples.
        frechet: The Fréchet distance.
        inception: The features.
    """

    precision_recall: Sequence[PrecisionRecall]
    frechet: Frechet
    inception: InceptionSpeed


def benchmark_evaluation(
    samples: Sequence[int],
    *,
    batch_size: int = 32,
    device: str = "auto",
    reference: int = 10_000,
    dimensions: int = 2048,
    watch: Callable[[PrecisionRecall | Frechet | InceptionSpeed], object] = lambda measured: None,
) -> Evaluation:
    """Measure the stages of the evaluation on random features and random images.

    Example:
        >>> from evaluations.benchmark.evaluation import benchmark_evaluation
        >>> found = benchmark_evaluation([200], batch_size=2, device="cpu", reference=300, dimensions=64)
        >>> found.frechet.relative_difference < 1e-9
        True

    Args:
        samples: The numbers of samples for precision and recall.
        batch_size: How many images Inception gets at once.
        device: "cpu", "cuda", "cuda:N", or "auto".
        reference: The number of features that samples are compared with.
        dimensions: The dimensions of a feature; Inception's have 2048.
        watch: Called with each finished measurement.

    Returns:
        The measurements.

    Raises:
        ValueError: If an argument is out of range.
    """
    where = pick_device(device)
    check_count("batch_size", batch_size)
    for count in samples:
        check_count("samples", count, 10)
    ours = [_precision_recall(count, reference, dimensions, where) for count in samples]  # NumPy leaves holes in the memory
    rows = []
    for row in ours:
        rows.append(_beside_numpy(row, where))
        watch(rows[-1])
    frechet = _frechet(dimensions)
    watch(frechet)
    inception = _inception(batch_size, where)
    watch(inception)
    return Evaluation(rows, frechet, inception)


def _features(seed: int, count: int, dimensions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randn(dimensions, generator=torch.Generator().manual_seed(0)).mul_(0.3).exp_()  # the same for all
    return torch.randn(count, dimensions, generator=generator).mul_(scales)


def _precision_recall(count: int, reference: int, dimensions: int, device: torch.device) -> PrecisionRecall:
    x, y = _features(1, count, dimensions).to(device), _features(2, reference, dimensions).to(device)
    before = peak_memory(lambda: None, device)
    times: list[float] = []
    peak = peak_memory(lambda: times.append(seconds(lambda: precision_recall(x, y), device)), device)
    return PrecisionRecall(count, reference, times[0], peak, before, dimensions)


def _beside_numpy(own: PrecisionRecall, device: torch.device) -> PrecisionRecall:
    arrays = _features(1, own.samples, own.dimensions).numpy(), _features(2, own.reference, own.dimensions).numpy()
    differences = sum(
        seconds(lambda a=a, b=b: [((row - b) ** 2).sum(1) for row in a[:ROWS]], device) * len(a) / ROWS  # type: ignore[misc]
        for a, b in ((arrays[0], arrays[0]), (arrays[1], arrays[1]), arrays)
    )
    fits = own.samples <= own.reference
    products = seconds(lambda: _numpy_products(*arrays), device) if fits else None
    return replace(own, seconds_of_differences=differences, seconds_of_products=products)


def _numpy_products(samples: NDArray[np.float32], reference: NDArray[np.float32], k: int = 3) -> tuple[float, float]:
    def distances(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
        a, b = a.astype(np.float64), b.astype(np.float64)
        squared: NDArray[np.float64] = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None, :]
        return squared

    near_reference, near_samples = (np.partition(distances(v, v), k, axis=1)[:, k] for v in (reference, samples))
    across = distances(samples, reference)
    return float((across <= near_reference).any(1).mean()), float((across <= near_samples[:, None]).any(0).mean())


def _frechet(dimensions: int) -> Frechet:
    features = (_features(seed, 5000, dimensions).double().numpy() for seed in (1, 2))
    a, b = (Statistics(x.mean(0), np.cov(x, rowvar=False)) for x in features)
    cpu = torch.device("cpu")
    own = min(seconds(lambda: frechet_distance(a, b), cpu) for _ in range(3))
    root = []
    theirs = seconds(lambda: root.append(sqrtm(a.covariance @ b.covariance)), cpu)
    delta = a.mean - b.mean
    truth = delta @ delta + np.trace(a.covariance + b.covariance - 2 * root[0].real)
    return Frechet(own, theirs, float(abs(frechet_distance(a, b) / truth - 1)), dimensions)


def _inception(batch_size: int, device: torch.device) -> InceptionSpeed:
    from evaluations.inception import Inception  # here, as it brings torchvision into the memory that is measured above

    network = Inception("random").to(device)
    images = torch.randint(0, 256, (batch_size, 3, 64, 64), dtype=torch.uint8, device=device)
    network(images)
    return InceptionSpeed(batch_size, batch_size / min(seconds(lambda: network(images), device) for _ in range(3)))
