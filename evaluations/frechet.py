"""The Fréchet distance between Gaussians (FID, sFID, FD-DINOv2), from moments that are computed batch by batch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, lapack, svdvals

Array = NDArray[np.float64]
BLOCK = 128  # rows that are compared at once
STORED = 1e-5
"""The errors that float32 may cause in a covariance, relative to its largest variance."""


@dataclass(frozen=True)
class Statistics:
    """Moments of features in float64.

    Args:
        mean: (D,).
        covariance: (D, D), with ddof = 1.
        count: Number of images; None if unknown.
        source: The file of the moments, for messages; None if they were computed.
    """

    mean: Array
    covariance: Array
    count: int | None = None
    source: str | None = None


class Moments:
    """Computes mean and covariance of features batch by batch, in float64. The features are not kept.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1983), which stays exact for large means.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Array = np.zeros(0)
        self._scatter: Array = np.zeros((0, 0))

    def update(self, features: NDArray[np.floating]) -> None:
        """Add features (n, D)."""
        x = np.asarray(features, dtype=np.float64)
        n, mean = len(x), x.mean(axis=0)
        x = x - mean
        scatter = x.T @ x
        if self.count == 0:
            self.count, self._mean, self._scatter = n, mean, scatter
            return
        total, delta = self.count + n, mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(delta, delta * (self.count * n / total))
        self._mean = self._mean + delta * (n / total)
        self.count = total

    def statistics(self) -> Statistics:
        """Return the moments of all features that were added.

        Raises:
            ValueError: If there are fewer than two images, which have no covariance.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return Statistics(self._mean, self._scatter / (self.count - 1), self.count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Compute |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (arXiv:1706.08500, Eq. 6).

    With S = R R^T, tr (S_a S_b)^(1/2) is the sum of the singular values of R_a^T R_b. This needs no matrix square root, and is
    also exact if there are fewer images than dimensions.

    Args:
        a: One side.
        b: The other side.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: If the numbers of features differ, values are not finite, or a covariance is not symmetric or not positive
            semidefinite.
    """
    for statistics in (a, b):
        _check_shape(statistics)
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    roots = [_root(statistics) for statistics in (a, b)]
    overlap = svdvals(roots[0].T @ roots[1], overwrite_a=True).sum() if all(root.size for root in roots) else 0.0
    delta = a.mean - b.mean
    distance = delta @ delta + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(0.0, float(distance))  # for equal Gaussians, rounding may give a negative number


def _check_shape(statistics: Statistics) -> None:
    mean, covariance = statistics.mean, statistics.covariance
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not mean.size:
        raise ValueError(f"{_called('mean', statistics)} has shape {mean.shape} and its covariance {covariance.shape}; "
                         "expected (D,) and (D, D)")  # fmt: skip
    for name, values in (("mean", mean), ("covariance", covariance)):
        if not np.isfinite(values).all():
            raise ValueError(f"{_called(name, statistics)} holds values that are not finite")


def _root(statistics: Statistics) -> Array:
    """Return R (D, rank) with R R^T = covariance, by a Cholesky decomposition with complete pivoting, which finds the rank."""
    covariance = statistics.covariance
    largest = np.abs(covariance.diagonal()).max()
    blocks = (slice(start, start + BLOCK) for start in range(0, len(covariance), BLOCK))  # three times as fast as in one step
    skew = max(np.abs(covariance[block, block.start :] - covariance[block.start :, block].T).max() for block in blocks)
    if skew > STORED * largest:
        raise ValueError(
            f"{_called('covariance', statistics)} is not symmetric: entries mirrored at the diagonal differ by up to {skew:.3g}"
        )
    factor, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
    order = pivots - 1
    root = np.empty((len(covariance), rank))
    root[order] = np.tril(factor)[:, :rank]
    rest = order[rank:]  # of a true covariance, the factor leaves only rounding errors there
    unexplained = covariance[np.ix_(rest, rest)] - root[rest] @ root[rest].T
    if unexplained.size and np.abs(unexplained).max() > 100 * len(covariance) * np.finfo(float).eps * largest:
        return _root_of_rounded(statistics, largest)
    return root


def _root_of_rounded(statistics: Statistics, largest: float) -> Array:
    """Return R for a covariance with negative eigenvalues, which are ignored if rounding to float32 explains them."""
    values, vectors = eigh(statistics.covariance)
    if values[0] < -STORED * largest:
        raise ValueError(
            f"{_called('covariance', statistics)} is not positive semidefinite: its eigenvalues reach from {values[0]:.3g} to "
            f"{values[-1]:.3g}, so it is the covariance of no data"
        )
    root: Array = vectors * np.sqrt(values.clip(0))
    return root


def _called(name: str, statistics: Statistics) -> str:
    return f"a {name}" if statistics.source is None else f"the {name} in {statistics.source}"
