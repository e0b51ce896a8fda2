"""The Vendi score (Friedman and Dieng, arXiv:2210.02410): how many different images there seem to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from evaluations.metric import Metric, Running, Summary, Unavailable

if TYPE_CHECKING:
    import torch

    from sag.data import ImageSource


@dataclass(frozen=True)
class _Similarity(Summary["Directions"]):
    @override
    def begin(self, images: ImageSource) -> Running[Directions]:
        return Directions()


@dataclass(frozen=True)
class Vendi(Metric["Directions"]):
    """The effective number of different samples: 1 if all are equal, N if no two are alike; the similarity is the cosine."""

    values: ClassVar = {"vendi": "Vendi"}
    needs: ClassVar = frozenset({"pool"})
    reference = False
    place = 81
    summary = _Similarity()

    @override
    def measure(self, sides: Sequence[Directions], device: torch.device) -> Mapping[str, float]:
        return {"vendi": sides[0].score()}


class Directions:
    """The Vendi score from features that come a batch at a time.

    With the cosine as similarity, the (N, N) kernel X X^T / N of the directions X and the (D, D) matrix X^T X / N have the same
    eigenvalues. Only the latter is kept, so that the number of images is not limited, and no subset needs to be drawn.
    """

    def __init__(self) -> None:
        self.count = 0
        self._products: NDArray[np.float64] = np.zeros((0, 0))
        self._zero: int | None = None

    def update(self, start: int, features: Mapping[str, NDArray[np.float32]]) -> None:
        """Add the pool features (n, D) of images start to start + n - 1."""
        x = features["pool"].astype(np.float64)
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        if self._zero is None and not lengths.all():
            self._zero = start + int(np.flatnonzero(lengths == 0)[0])
        x = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
        products = x.T @ x
        self._products = products if self.count == 0 else self._products + products
        self.count += len(x)

    def result(self) -> Directions:
        """All that has been added."""
        return self

    def score(self) -> float:
        """Return exp of the entropy of the eigenvalues.

        Raises:
            Unavailable: An image has features that are all zero, which have no direction.
        """
        from scipy.linalg import eigvalsh
        from scipy.special import entr

        if self._zero is not None:
            raise Unavailable(f"image {self._zero} of the samples has features that are all zero, which have no direction")
        eigenvalues = eigvalsh(self._products / self.count).clip(0)  # rounding makes some a little negative
        return float(np.exp(entr(eigenvalues).sum()))
