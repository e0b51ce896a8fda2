"""Class labels: what counts as such, checked in one place."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Labels = Literal["random", "balanced", "none"] | int | Sequence[int]
"""How samples get labels: drawn uniformly, i modulo the number of classes, not at all, or given (sample i gets entry i
modulo the length)."""

_LARGEST = np.iinfo(np.int64).max


def check_label_header(shape: Sequence[int], dtype: np.dtype, count: int, where: str) -> None:
    """Raise a ValueError if an array of this shape and type cannot hold the labels of `count` images.

    Args:
        shape: Its shape.
        dtype: Its type.
        count: The number of images.
        where: What the array is called in the message: "arr_1 of x.npz".
    """
    if tuple(shape) not in ((count,), (count, 1)) or dtype.kind not in "iuf":
        kind = "pickled Python objects" if dtype.hasobject else str(dtype)
        raise ValueError(
            f"{where} is {kind} of shape {tuple(shape)}; expected labels, whole numbers of shape ({count},), one for each image"
        )


def as_labels(values: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Labels as int64 (count,), from whole numbers of any integer or float type, (count,) or (count, 1).

    Args:
        values: The labels as they are stored.
        count: The number of images.
        where: What the array is called in the message: "arr_1 of x.npz".

    Returns:
        The same numbers, int64 (count,).

    Raises:
        ValueError: another shape or type, or numbers that are not whole or do not fit.
    """
    values = np.asarray(values)
    check_label_header(values.shape, values.dtype, count, where)
    flat = values.reshape(count)
    if flat.dtype.kind == "f":
        flat = flat.astype(np.float64)
        bad = ~np.isfinite(flat) | (flat != np.floor(flat)) | (np.abs(flat) > 2**53)
    else:
        bad = flat > _LARGEST
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(
            f"{where} ({values.dtype} of shape {values.shape}) holds {flat[place]} at place {place}; labels are whole numbers"
        )
    return flat.astype(np.int64)
