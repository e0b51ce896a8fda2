"""Scales that change over time."""

import math
from dataclasses import dataclass
from typing import Literal

SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class ScaleSchedule:
    """A scale that goes from `start`, where sampling starts (time 1, noise), to `end` (time 0, image).

    Args:
        start: The scale at time t / T = 1; 0 is exactly off.
        end: The scale at time 0.
        shape: "linear", or "cosine", which is half a wave and flat at both ends.

    Raises:
        ValueError: If the shape is unknown.
    """

    start: float
    end: float
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"unknown scale shape {self.shape!r}; expected one of {', '.join(SHAPES)}")

    def __call__(self, time: float) -> float:
        """Return the scale at a time in [0, 1]."""
        share = time if self.shape == "linear" else (1 - math.cos(math.pi * time)) / 2
        return self.end + (self.start - self.end) * share
