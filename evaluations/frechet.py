"""Fréchet distance between Gaussians (FID, sFID, FD-DINOv2) from streamed moments."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, lapack, svdvals

Array = NDArray[np.float64]
BLOCK = 128  # rows at once
STORED = 1e-5
"""What a covariance that was computed or stored in float32 may lack to be one, relative to its largest variance."""


@dataclass(frozen=True)
class Statistics:
    """Moments of features in float64.

    Args:
        mean: (D,).
        covariance: (D, D), ddof = 1.
        count: of how many images; None if not known.
        source: the file they are from, for messages; None if they were computed.
    """

    mean: Array
    covariance: Array
    count: int | None = None
    source: str | None = None


class Moments:
    """Mean and covariance of features that come a batch at a time, in float64; the batches themselves are not kept.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1983), which does not lose digits to a large mean.
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
        """What has been added so far.

        Raises:
            ValueError: fewer than two images, which have no covariance.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return Statistics(self._mean, self._scatter / (self.count - 1), self.count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Heusel et al., arXiv:1706.08500, Eq. 6.

    With S = R R^T, tr (S_a S_b)^(1/2) is the sum of the singular values of R_a^T R_b. No matrix square root is taken, nothing
    is squared and rooted again, and covariances of fewer images than dimensions are exact too.

    Args:
        a: one side.
        b: the other side.

    Returns:
        The distance, never below 0.

    Raises:
        ValueError: different numbers of features, values that are not finite, or a covariance that is not symmetric or not
            positive semidefinite.
    """
    for statistics in (a, b):
        _check_shape(statistics)
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    roots = [_root(statistics) for statistics in (a, b)]
    overlap = svdvals(roots[0].T @ roots[1], overwrite_a=True).sum() if all(root.size for root in roots) else 0.0
    delta = a.mean - b.mean
    distance = delta @ delta + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(0.0, float(distance))  # equal Gaussians may differ from 0 by rounding


def _check_shape(statistics: Statistics) -> None:
    mean, covariance = statistics.mean, statistics.covariance
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not mean.size:
        raise ValueError(f"{_called('mean', statistics)} has shape {mean.shape} and its covariance {covariance.shape}; "
                         "expected (D,) and (D, D)")  # fmt: skip
    for name, values in (("mean", mean), ("covariance", covariance)):
        if not np.isfinite(values).all():
            raise ValueError(f"{_called(name, statistics)} holds values that are not finite")


def _root(statistics: Statistics) -> Array:
    """R (D, rank) with R R^T = covariance: Cholesky's factor with complete pivoting, which stops at the rank."""
    covariance = statistics.covariance
    largest = np.abs(covariance.diagonal()).max()
    blocks = (slice(start, start + BLOCK) for start in range(0, len(covariance), BLOCK))  # a third of the time of the whole
    skew = max(np.abs(covariance[block, block.start :] - covariance[block.start :, block].T).max() for block in blocks)
    if skew > STORED * largest:
        raise ValueError(
            f"{_called('covariance', statistics)} is not symmetric: entries mirrored at the diagonal differ by up to {skew:.3g}"
        )
    factor, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
    order = pivots - 1
    root = np.empty((len(covariance), rank))
    root[order] = np.tril(factor)[:, :rank]
    rest = order[rank:]  # what the factor does not explain is nothing, up to rounding, if the covariance is one
    unexplained = covariance[np.ix_(rest, rest)] - root[rest] @ root[rest].T
    if unexplained.size and np.abs(unexplained).max() > 100 * len(covariance) * np.finfo(float).eps * largest:
        return _root_of_rounded(statistics, largest)
    return root


def _root_of_rounded(statistics: Statistics, largest: float) -> Array:
    """As `_root`, for a covariance with negative eigenvalues, which are left out if rounding to float32 explains them."""
    values, vectors = eigh(statistics.covariance)
    if values[0] < -STORED * largest:
        raise ValueError(
            f"{_called('covariance', statistics)} is not positive semidefinite: its eigenvalues reach from {values[0]:.3g} to "
            f"{values[-1]:.3g}, so it is the covariance of no data"
        )
    return vectors * np.sqrt(values.clip(0))


def _called(name: str, statistics: Statistics) -> str:
    return f"a {name}" if statistics.source is None else f"the {name} in {statistics.source}"
