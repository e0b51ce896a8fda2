"""Inception Score (Salimans et al., arXiv:1606.03498) from streamed logits, in ADM's order and chunks."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, xlogy

CHUNK = 5000  # images per chunk in the reference program; the last chunk may be smaller and weighs the same
SHUFFLE_SEED = 2020  # torch-fidelity's


class InceptionScore:
    """exp E KL(p(y|x) || p(y)) of each chunk, accumulated in float64; only sums are kept.

    count: N, the number of images that will come. splits: None cuts chunks of 5,000 in file order, as ADM's evaluator does;
    a number cuts so many equal ones. shuffle: over a fixed permutation (10 splits and shuffle are torch-fidelity's).
    """

    def __init__(self, count: int, splits: int | None = None, shuffle: bool = False) -> None:
        self.count = count
        self.chunks = -(-count // CHUNK) if splits is None else splits
        if not 1 <= self.chunks <= count:
            raise ValueError(f"cannot cut {count} images into {self.chunks} splits")
        starts = [i * CHUNK if splits is None else i * count // splits for i in range(self.chunks + 1)]
        position = np.arange(count)
        if shuffle:
            position[np.random.RandomState(SHUFFLE_SEED).permutation(count)] = np.arange(count)
        self._chunk = np.searchsorted(starts[:-1], position, side="right") - 1
        self._sizes = np.bincount(self._chunk, minlength=self.chunks)
        self._sums: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def update(self, start: int, logits: NDArray[np.floating]) -> None:
        """Add the logits (n, classes) of images start to start + n - 1."""
        log_p = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
        p = np.exp(log_p)
        if self._sums is None:
            self._sums = np.zeros((self.chunks, p.shape[1])), np.zeros(self.chunks)
        chunk = self._chunk[start : start + len(p)]
        for c in np.unique(chunk):
            self._sums[0][c] += p[chunk == c].sum(axis=0)
        np.add.at(self._sums[1], chunk, (p * log_p).sum(axis=1))

    def score(self) -> float:
        """The mean over chunks, once all images have been added."""
        assert self._sums is not None
        marginal = self._sums[0] / self._sizes[:, None]
        divergence = self._sums[1] / self._sizes - xlogy(marginal, marginal).sum(axis=1)
        return math.fsum(np.exp(divergence)) / self.chunks
