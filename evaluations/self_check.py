"""Checks of all stages that need no weights, each against an independent computation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from evaluations.frechet import Moments, Statistics, frechet_distance
from evaluations.inception import Inception
from evaluations.metrics.inception_score import CHUNK, InceptionScore
from evaluations.metrics.kid import kernel_distance
from evaluations.neighbours import density_coverage, precision_recall
from evaluations.resize import resize_tensorflow1

# The start of the sha256 of TensorFlow's resized and normalised images (float32, HWC), by height and width
RESIZED = {
    (5, 7): "ff0450e62fdd756d",
    (32, 32): "dc8ba709c84ef866",
    (64, 64): "a6551ed759766e78",
    (256, 256): "b565c2929ddcb4f0",
    (300, 400): "e455c9bc1190838c",
    (512, 512): "75eaff6b448165b7",
}


@dataclass(frozen=True)
class Check:
    """A check that was made.

    Attributes:
        title: What is compared.
        error: The error that was found.
        bound: The largest error that passes.
    """

    title: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound."""
        return self.error <= self.bound


def self_check() -> Iterator[Check]:
    """Make all checks, one after the other.

    Example:
        >>> from evaluations.self_check import self_check
        >>> next(self_check()).passed
        True

    Yields:
        Each check as soon as it is made.
    """
    for title, bound, check in CHECKS:
        yield Check(title, check(), bound)


def pattern(height: int, width: int) -> torch.Tensor:
    """Return the test image (37 h + 101 w + 53 c) mod 256, (1, 3, H, W) float32."""
    h, w, c = np.ogrid[:height, :width, :3]
    return torch.from_numpy((37 * h + 101 * w + 53 * c) % 256).permute(2, 0, 1)[None].float()


def _resize() -> float:
    wrong = 0
    for (height, width), expected in RESIZED.items():
        x = (resize_tensorflow1(pattern(height, width), 299, 299) - 128) / 128
        wrong += sha256(x[0].permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()[:16] != expected
    return float(wrong)


def _features(seed: int, count: int, dim: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    features: NDArray[np.float64] = generator.standard_normal((count, dim)) @ generator.standard_normal((dim, dim)) / dim**0.5
    return features + seed


def _statistics(x: NDArray[np.float64]) -> Statistics:
    return Statistics(x.mean(0), np.cov(x, rowvar=False), len(x))


def _moments() -> float:
    x, moments = _features(100, 700, 64), Moments()
    for part in np.split(x, [1, 250, 300]):
        moments.update(part)
    truth = np.cov(x, rowvar=False)
    return float(np.abs(moments.statistics().covariance - truth).max() / np.abs(truth).max())


def _frechet_full_rank() -> float:
    a, b = (_statistics(_features(seed, 1000, 256)) for seed in (0, 1))
    delta = a.mean - b.mean
    truth = delta @ delta + np.trace(a.covariance + b.covariance - 2 * sqrtm(a.covariance @ b.covariance).real)
    return float(abs(frechet_distance(a, b) / truth - 1))


def _frechet_few_images() -> float:
    x, y = _features(0, 60, 256), _features(1, 90, 256)
    # For centred data matrices X and Y, tr (S_a S_b)^(1/2) is the sum of the singular values of X Y^T
    overlap = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T, compute_uv=False).sum() / (59 * 89) ** 0.5
    delta = x.mean(0) - y.mean(0)
    truth = delta @ delta + np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False)) - 2 * overlap
    return float(abs(frechet_distance(_statistics(x), _statistics(y)) / truth - 1))


def _frechet_same() -> float:
    return max(abs(frechet_distance(s, s)) for s in (_statistics(_features(0, n, 256)) for n in (60, 1000)))


def _inception_score() -> float:
    logits = np.random.default_rng(0).standard_normal((CHUNK + 700, 40)) * 3
    score = InceptionScore(len(logits))
    for start in range(0, len(logits), 300):
        score.update(start, logits[start : start + 300])
    truth = []
    for part in (logits[:CHUNK], logits[CHUNK:]):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        truth.append(np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0))), 1))))
    return float(abs(score.score() / np.mean(truth) - 1))


def _distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([(row - y.double()).square().sum(1) for row in x.double()])


def neighbour_truth(samples: torch.Tensor, reference: torch.Tensor, k: int, k_density: int) -> tuple[float, ...]:
    """Compute precision, recall, density and coverage by brute force in float64.

    Args:
        samples: (N, D).
        reference: (M, D).
        k: Number of neighbours for precision and recall.
        k_density: Number of neighbours for density and coverage.
    """
    within, near = _distances(reference, reference).sort(1).values, _distances(samples, samples).sort(1).values[:, k]
    across = _distances(samples, reference)
    inside = across < within[:, k_density]
    precision, recall = (across <= within[:, k]).any(1), (across <= near[:, None]).any(0)
    return (
        float(precision.double().mean()),
        float(recall.double().mean()),
        int(inside.sum()) / (k_density * len(samples)),
        float(inside.any(0).double().mean()),
    )


def awkward_features() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield pairs of samples and reference with repeated rows, ties, a large mean or few dimensions."""
    for seed, (dim, mean, ties) in enumerate([(3, 0.5, False), (64, 5.0, False), (512, 0.5, False), (2, 0.0, True)]):
        generator = torch.Generator().manual_seed(seed)
        reference = torch.randn(500, dim, generator=generator) * 0.3 + mean
        order = torch.randperm(500, generator=generator)[:300]
        samples = reference[order] + 0.2 * torch.randn(300, dim, generator=generator)
        samples[:40], samples[40:80], reference[100:110] = samples[0], reference[:40], reference[0]
        yield (samples.mul(2).round(), reference.mul(2).round()) if ties else (samples, reference)


def _neighbours() -> float:
    error = 0.0
    for samples, reference in awkward_features():
        found = precision_recall(samples, reference) + density_coverage(samples, reference)
        truth = neighbour_truth(samples, reference, 3, 5)
        error = max(error, *(abs(a - b) for a, b in zip(found, truth, strict=True)))
    return error


def _kernel() -> float:
    x, y = (_features(seed, 50, 8).astype(np.float32) for seed in (0, 1))
    k = [
        [[(float(np.dot(a.astype(float), b.astype(float))) / 8 + 1) ** 3 for b in v] for a in u]
        for u, v in ((x, x), (y, y), (x, y))
    ]
    within = sum(np.sum(matrix) - np.trace(matrix) for matrix in k[:2]) / (50 * 49)
    truth = within - 2 * np.mean(k[2])
    return float(abs(kernel_distance(x, y, subsets=2)[0] / truth - 1))


def _inception_batches() -> float:
    network = Inception("random")
    images = torch.randint(0, 256, (6, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, single = network(images), [network(image[None]) for image in images]
    pairs = [(whole.pool, [f.pool for f in single]), (whole.spatial, [f.spatial for f in single])]
    return max(float((together - torch.cat(apart)).abs().max()) for together, apart in pairs)


CHECKS: list[tuple[str, float, Callable[[], float]]] = [
    ("resize to 299 x 299: images whose bits differ from TensorFlow's, of 6", 0, _resize),
    ("streamed covariance against numpy.cov, relative", 1e-12, _moments),
    ("Fréchet distance, full rank, against scipy's sqrtm, relative", 1e-9, _frechet_full_rank),
    ("Fréchet distance, fewer images than dimensions, against the SVD, relative", 1e-9, _frechet_few_images),
    ("Fréchet distance of a set to itself, full and deficient rank", 1e-9, _frechet_same),
    ("Inception Score against its definition in float64, relative", 1e-10, _inception_score),
    ("precision, recall, density, coverage against brute force, ties included", 0, _neighbours),
    ("KID against its definition, relative", 1e-9, _kernel),
    ("Inception features (random weights) of a batch against single images", 1e-6, _inception_batches),
]
