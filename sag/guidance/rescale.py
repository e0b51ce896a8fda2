"""Guidance rescale (arXiv:2305.08891, section 3.4): strong guidance without images that are too bright or too flat."""

from collections.abc import Sequence

from torch import Tensor

from sag.guidance.base import DifferenceTransform, GuidanceState, Scale


class GuidanceRescale(DifferenceTransform):
    """Brings the standard deviation of the guided clean image back to that of the unguided one.

    Args:
        scale: The paper's phi: 0 is off, 1 brings all of it back, 0.7 is the paper's choice.
        interval: See `Guidance`.
    """

    def __init__(self, scale: Scale, interval: Sequence[float] = (0.0, 1.0)) -> None:
        super().__init__(scale, interval)

    def transform(self, state: GuidanceState, x_0: Tensor, difference: Tensor) -> Tensor:
        """See `DifferenceTransform`."""
        guided = x_0 + difference
        ratio = x_0.flatten(1).std(dim=1) / guided.flatten(1).std(dim=1)
        factor = 1 + self.scale_at(state.time) * (ratio - 1)
        return factor.view(-1, 1, 1, 1) * guided - x_0
