"""Stored levels, and their conversion to and from the units of the user's own data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8 | np.uint16]
"""Levels: 0 is -1 for the model, and the highest level (255 in uint8, 65535 in uint16) is 1."""

BITS = (8, 16)


def eight_bits(images: Images) -> NDArray[np.uint8]:
    """Convert levels to 8 bits, for pictures and feature networks. 16 bits are rounded."""
    return np.asarray(images if images.dtype == np.uint8 else (images / 257).round(), np.uint8)


def from_values(values: NDArray[Any], value_range: Sequence[float]) -> NDArray[np.uint16]:
    """Convert values in the user's unit to 16-bit levels.

    Args:
        values: Values of any shape.
        value_range: The values (low, high) of levels 0 and 65535. Values outside are clipped.

    Returns:
        uint16 levels, in the shape of `values`.

    Raises:
        ValueError: If the range is invalid, or the values are not finite real numbers.
    """
    low, high = check_range(value_range)
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"the values are {values.dtype}; expected real numbers")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the values are not all finite; replace NaN and infinity, which have no level")
    return np.asarray(((values - low) / (high - low) * 65535).round().clip(0, 65535).astype(np.uint16))


def to_values(images: Images, value_range: Sequence[float]) -> NDArray[np.float32]:
    """Convert levels to values in the user's unit: the inverse of `from_values`, to within half a level.

    Args:
        images: Levels of any shape.
        value_range: The values (low, high) of the lowest and the highest level.

    Returns:
        float32 values, in the shape of `images`.

    Raises:
        ValueError: If the range is invalid.
    """
    low, high = check_range(value_range)
    return (low + (high - low) * (images / highest_level(images))).astype(np.float32)


def check_range(value_range: Sequence[float]) -> tuple[float, float]:
    """Check a range of values.

    Args:
        value_range: [low, high].

    Returns:
        Low and high.

    Raises:
        ValueError: If these are not two finite numbers, or low is not below high.
    """
    given = list(value_range)
    numbers = len(given) == 2 and all(isinstance(end, (int, float, np.number)) and abs(end) < np.inf for end in given)
    if not numbers or not given[0] < given[1] or not np.isfinite(float(given[1]) - float(given[0])):
        raise ValueError(f"value_range must be [low, high] with low below high, got {given}")
    return float(given[0]), float(given[1])


def highest_level(images: Images) -> int:
    """Return the highest level of a dtype, which is 1 for the model."""
    return int(np.iinfo(images.dtype).max)
