"""The Vendi score (Friedman and Dieng, arXiv:2210.02410): the effective number of different images."""

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
    """The effective number of different samples by cosine similarity: 1 if all are equal, N if all are orthogonal."""

    values: ClassVar = {"vendi": "Vendi"}
    needs: ClassVar = frozenset({"pool"})
    reference = False
    place = 81
    summary = _Similarity()

    @override
    def measure(self, sides: Sequence[Directions], device: torch.device) -> Mapping[str, float]:
        return {"vendi": sides[0].score()}


class Directions:
    """Computes the Vendi score batch by batch.

    With cosine similarity, the (N, N) kernel X X^T / N of the normalised features X and the (D, D) matrix X^T X / N have the
    same non-zero eigenvalues. Only the latter is kept, so the number of images is not limited and no subset is needed.
    """

    def __init__(self) -> None:
        self.count = 0
        self._products: NDArray[np.float64] = np.zeros((0, 0))
        self._zero: int | None = None

    def update(self, start: int, features: Mapping[str, NDArray[np.float32]]) -> None:
        """Add the features of n consecutive images (see `Running`)."""
        x = features["pool"].astype(np.float64)
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        if self._zero is None and not lengths.all():
            self._zero = start + int(np.flatnonzero(lengths == 0)[0])
        x = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
        products = x.T @ x
        self._products = products if self.count == 0 else self._products + products
        self.count += len(x)

    def result(self) -> Directions:
        """Return this object, which has all features that were added."""
        return self

    def score(self) -> float:
        """Return the exponential of the entropy of the eigenvalues.

        Raises:
            Unavailable: If an image has features that are all zero, which have no direction.
        """
        from scipy.linalg import eigvalsh
        from scipy.special import entr

        if self._zero is not None:
            raise Unavailable(f"image {self._zero} of the samples has features that are all zero, which have no direction")
        eigenvalues = eigvalsh(self._products / self.count).clip(0)  # rounding makes some slightly negative
        return float(np.exp(entr(eigenvalues).sum()))
