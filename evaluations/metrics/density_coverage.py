"""Density and coverage by nearest neighbours (Naeem et al., arXiv:2002.09797)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from evaluations.metric import Metric, Rows, check_count

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DensityCoverage(Metric["torch.Tensor"]):
    """The mean number of reference neighbourhoods that contain a sample, and the share of them that contain any.

    Args:
        density_neighbours: Number of neighbours of a reference image in its neighbourhood.
    """

    density_neighbours: int = 5

    values: ClassVar = {"density": "density", "coverage": "coverage"}
    needs: ClassVar = frozenset({"pool"})
    default = True
    place = 60
    summary = Rows("pool")

    def __post_init__(self) -> None:
        check_count("density_neighbours", self.density_neighbours)

    @property
    @override
    def minimum(self) -> int:
        return self.density_neighbours + 1

    @override
    def measure(self, sides: Sequence[torch.Tensor], device: torch.device) -> Mapping[str, float]:
        from evaluations.neighbours import density_coverage

        samples, reference = (side.to(device) for side in sides)
        density, coverage = density_coverage(samples, reference, self.density_neighbours)
        return {"density": density, "coverage": coverage}
