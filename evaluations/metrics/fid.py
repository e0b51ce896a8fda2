"""FID, the Fréchet Inception Distance (Heusel et al., arXiv:1706.08500)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from evaluations.metric import Metric, MomentsOf

if TYPE_CHECKING:
    import torch

    from evaluations.frechet import Statistics

FEW = 2048  # with fewer images than Inception features, FID is mostly bias


@dataclass(frozen=True)
class FID(Metric["Statistics"]):
    """The Fréchet distance of pool features; with the DINOv2 extractor it is FD-DINOv2."""

    values: ClassVar = {"fid": "FID"}
    needs: ClassVar = frozenset({"pool"})
    default = column = True
    place = 10
    summary = MomentsOf("pool")

    @override
    def measure(self, sides: Sequence[Statistics], device: torch.device) -> Mapping[str, float]:
        from evaluations.frechet import frechet_distance

        samples, reference = sides
        return dict.fromkeys(self.values, frechet_distance(samples, reference))

    @override
    def warnings(self, sides: Sequence[Statistics]) -> Sequence[str]:
        return [
            f"there are only {side.count} {name}: below {FEW}, FID depends more on their number than on their quality"
            for side, name in zip(sides, ("samples", "reference images"), strict=True)
            if side.count is not None and side.count < FEW
        ]
