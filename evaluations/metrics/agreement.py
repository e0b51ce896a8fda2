"""Agreement: whether samples show the class of their label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from evaluations.metric import Metric, Running, Summary

if TYPE_CHECKING:
    import torch

    from sag.data import ImageSource


@dataclass(frozen=True)
class _Recognised(Summary[float]):
    @override
    def begin(self, images: ImageSource) -> Running[float]:
        labels = images.labels()
        assert labels is not None  # the metric needs them
        return _RunningShare(labels)


class _RunningShare:
    def __init__(self, labels: NDArray[np.integer]) -> None:
        self.labels, self.recognised = labels, 0

    def update(self, start: int, features: Mapping[str, NDArray[np.float32]]) -> None:
        found = features["logits"].argmax(1)
        self.recognised += int((found == self.labels[start : start + len(found)]).sum())

    def result(self) -> float:
        return self.recognised / len(self.labels)


@dataclass(frozen=True)
class Agreement(Metric[float]):
    """The share of samples that the extractor classifies as their label."""

    values: ClassVar = {"agreement": "agreement"}
    needs: ClassVar = frozenset({"logits", "labels"})
    reference = False
    default = column = True
    place = 70
    summary = _Recognised()

    @override
    def measure(self, sides: Sequence[float], device: torch.device) -> Mapping[str, float]:
        return {"agreement": sides[0]}
