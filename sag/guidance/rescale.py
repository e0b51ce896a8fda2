"""Guidance rescale (arXiv:2305.08891, section 3.4): strong guidance without overexposed images."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from sag.guidance.base import DifferenceTransform, GuidanceState, Scale


class GuidanceRescale(DifferenceTransform):
    """Rescales the guided clean image towards the standard deviation of the unguided one.

    Args:
        scale: The paper's phi: 0 is off, 1 restores the standard deviation fully. The paper uses 0.7.
        interval: See `Guidance`.
    """

    def __init__(self, scale: Scale, interval: Sequence[float] = (0.0, 1.0)) -> None:
        super().__init__(scale, interval)

    @override
    def transform(self, state: GuidanceState, x_0: Tensor, difference: Tensor) -> Tensor:
        guided = x_0 + difference
        ratio = x_0.flatten(1).std(dim=1) / guided.flatten(1).std(dim=1)
        factor = 1 + self.scale_at(state.time) * (ratio - 1)
        return factor.view(-1, 1, 1, 1) * guided - x_0
