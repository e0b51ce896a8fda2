"""The Inception Score (Salimans et al., arXiv:1606.03498), computed batch by batch, in ADM's order and chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from evaluations.metric import Metric, Running, Summary, check_count

if TYPE_CHECKING:
    import torch

    from sag.data import ImageSource

CHUNK = 5000  # images per chunk in the reference program; the last chunk may be smaller and has the same weight
SHUFFLE_SEED = 2020  # torch-fidelity's seed
SORTED = 0.8  # below this share of the score in random order, the file is sorted by class


@dataclass(frozen=True)
class Scores:
    """The score in two orders.

    Attributes:
        ordered: In the order that the settings say.
        shuffled: In random order.
    """

    ordered: float
    shuffled: float


@dataclass(frozen=True)
class IS(Metric[Scores]):
    """exp E KL(p(y|x) || p(y)) of the extractor's classes.

    Args:
        is_splits: Number of equal chunks; None for chunks of 5,000 in file order, as in ADM's evaluator.
        is_shuffle: Whether to shuffle by a fixed permutation; torch-fidelity does, with 10 splits.
    """

    is_splits: int | None = None
    is_shuffle: bool = False

    values: ClassVar = {"is": "IS"}
    needs: ClassVar = frozenset({"logits"})
    reference = False
    default = column = True
    place = 30

    def __post_init__(self) -> None:
        if self.is_splits is not None:
            check_count("is_splits", self.is_splits, also=" or null")
        if not isinstance(self.is_shuffle, bool):
            raise ValueError(f"is_shuffle must be true or false, got {self.is_shuffle!r}")

    @property
    @override
    def minimum(self) -> int:
        return self.is_splits or 1

    @property
    @override
    def summary(self) -> Summary[Scores]:
        return _BothOrders(self.is_splits, self.is_shuffle)

    @override
    def measure(self, sides: Sequence[Scores], device: torch.device) -> Mapping[str, float]:
        return {"is": sides[0].ordered}

    @override
    def warnings(self, sides: Sequence[Scores]) -> Sequence[str]:
        (scores,) = sides
        if scores.ordered >= SORTED * scores.shuffled:
            return ()
        return [
            f"the samples look sorted by class: IS is {scores.ordered:.2f} in file order and {scores.shuffled:.2f} in random "
            "order (is_shuffle=true)"
        ]


@dataclass(frozen=True)
class _BothOrders(Summary[Scores]):
    splits: int | None
    shuffle: bool

    @override
    def begin(self, images: ImageSource) -> Running[Scores]:
        return _RunningScores(*(InceptionScore(len(images), self.splits, shuffle) for shuffle in (self.shuffle, True)))


class _RunningScores:
    def __init__(self, ordered: InceptionScore, shuffled: InceptionScore) -> None:
        self.ordered, self.shuffled = ordered, shuffled

    def update(self, start: int, features: Mapping[str, NDArray[np.float32]]) -> None:
        for score in (self.ordered, self.shuffled):
            score.update(start, features["logits"])

    def result(self) -> Scores:
        return Scores(self.ordered.score(), self.shuffled.score())


class InceptionScore:
    """Computes exp E KL(p(y|x) || p(y)) of each chunk, in float64. Only sums are kept.

    Args:
        count: Number of images that will be added.
        splits: Number of equal chunks; None for chunks of 5,000 in file order, as in ADM's evaluator.
        shuffle: Whether to shuffle by a fixed permutation; torch-fidelity does, with 10 splits.

    Raises:
        ValueError: If there are more chunks than images.
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
        """Add the logits of n consecutive images.

        Args:
            start: Index of the first image.
            logits: (n, classes).
        """
        from scipy.special import log_softmax

        log_p = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
        p = np.exp(log_p)
        if self._sums is None:
            self._sums = np.zeros((self.chunks, p.shape[1])), np.zeros(self.chunks)
        chunk = self._chunk[start : start + len(p)]
        for c in np.unique(chunk):
            self._sums[0][c] += p[chunk == c].sum(axis=0)
        np.add.at(self._sums[1], chunk, (p * log_p).sum(axis=1))

    def score(self) -> float:
        """Return the mean over chunks, after all images were added."""
        from scipy.special import xlogy

        assert self._sums is not None
        marginal = self._sums[0] / self._sizes[:, None]
        divergence = self._sums[1] / self._sizes - xlogy(marginal, marginal).sum(axis=1)
        return math.fsum(np.exp(divergence)) / self.chunks
