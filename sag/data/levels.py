"""Between the model's range [-1, 1], the levels that are stored, and the units of the user's own data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8 | np.uint16]
"""Levels: 0 is the model's -1; 255 in uint8, and 65535 in uint16, is its 1."""

BITS = (8, 16)


def eight_bits(images: Images) -> NDArray[np.uint8]:
    """Levels in 8 bits, as pictures and feature networks have them; 16 bits are rounded."""
    return np.asarray(images if images.dtype == np.uint8 else (images / 257).round(), np.uint8)


def from_values(values: NDArray[Any], value_range: Sequence[float]) -> NDArray[np.uint16]:
    """Values of any shape and unit as 16-bit levels: value_range's low end is 0, its high end 65535, what is beyond is cut.

    Raises:
        ValueError: an impossible range, or values that are not finite real numbers.
    """
    low, high = check_range(value_range)
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"the values are {values.dtype}; expected real numbers")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the values are not all finite; replace NaN and infinity, which no level stands for")
    return np.asarray(((values - low) / (high - low) * 65535).round().clip(0, 65535).astype(np.uint16))


def to_values(images: Images, value_range: Sequence[float]) -> NDArray[np.float32]:
    """Levels as values in the user's unit, float32: the inverse of `from_values`, to half a level.

    Raises:
        ValueError: an impossible range.
    """
    low, high = check_range(value_range)
    return (low + (high - low) * (images / highest_level(images))).astype(np.float32)


def check_range(value_range: Sequence[float]) -> tuple[float, float]:
    """The ends of a range of values.

    Args:
        value_range: [low, high].

    Returns:
        Low and high.

    Raises:
        ValueError: Not two finite numbers, or low is not below high.
    """
    given = list(value_range)
    numbers = len(given) == 2 and all(isinstance(end, (int, float, np.number)) and abs(end) < np.inf for end in given)
    if not numbers or not given[0] < given[1] or not np.isfinite(float(given[1]) - float(given[0])):
        raise ValueError(f"value_range must be [low, high] with low below high, got {given}")
    return float(given[0]), float(given[1])


def highest_level(images: Images) -> int:
    """Return the level that stands for the model's 1."""
    return int(np.iinfo(images.dtype).max)
