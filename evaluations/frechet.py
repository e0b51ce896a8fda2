"""Fréchet distance between Gaussians (FID, sFID, FD-DINOv2) from streamed moments."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack, svdvals

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D, ddof = 1) of features in float64; count: of how many images, None if not known."""

    mean: Array
    covariance: Array
    count: int | None = None


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

    Raises:
        ValueError: different numbers of features, or values that are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    roots = [_root(statistics.covariance) for statistics in (a, b)]
    overlap = svdvals(roots[0].T @ roots[1], overwrite_a=True).sum() if all(root.size for root in roots) else 0.0
    delta = a.mean - b.mean
    return float(delta @ delta + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap)


def _root(covariance: Array) -> Array:
    """R (D, rank) with R R^T = covariance: Cholesky's factor with complete pivoting, which stops at the rank."""
    if not np.isfinite(covariance).all():
        raise ValueError("a covariance holds values that are not finite")
    factor, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
    root = np.empty((len(covariance), rank))
    root[pivots - 1] = np.tril(factor)[:, :rank]
    return root
