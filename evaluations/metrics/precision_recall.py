"""Precision and recall by nearest neighbours (Kynkäänniemi et al., arXiv:1904.06991)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from evaluations.metric import Metric, Rows, check_count

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PrecisionRecall(Metric["torch.Tensor"]):
    """The share of samples near reference images, and the share of reference images near samples.

    Args:
        neighbours: An image is near another one if it is within the distance of the other's k-th neighbour.
        distance_dtype: "float16" rounds distances as ADM's evaluator does, which raises both values a little.
    """

    neighbours: int = 3
    distance_dtype: Literal["float32", "float16"] = "float32"

    values: ClassVar = {"precision": "precision", "recall": "recall"}
    needs: ClassVar = frozenset({"pool"})
    default = column = True
    place = 40
    summary = Rows("pool")

    def __post_init__(self) -> None:
        check_count("neighbours", self.neighbours)
        if self.distance_dtype not in ("float32", "float16"):
            raise ValueError(f"distance_dtype must be float32 or float16 (as ADM's evaluator), got {self.distance_dtype!r}")

    @property
    @override
    def minimum(self) -> int:
        return self.neighbours + 1

    @override
    def measure(self, sides: Sequence[torch.Tensor], device: torch.device) -> Mapping[str, float]:
        from evaluations.neighbours import precision_recall

        samples, reference = (side.to(device) for side in sides)
        precision, recall = precision_recall(samples, reference, self.neighbours, self.distance_dtype)
        return {"precision": precision, "recall": recall}
