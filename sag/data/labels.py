"""Class labels and their checks."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Labels = Literal["random", "balanced", "none"] | int | Sequence[int]
"""How samples get labels.

"random" draws them uniformly, "balanced" gives sample i the label i modulo the number of classes, and "none" gives no labels.
A number is used for all samples. Sample i gets entry i of a list, modulo its length.
"""

_LARGEST = np.iinfo(np.int64).max


def check_label_header(shape: Sequence[int], dtype: np.dtype[Any], count: int, where: str) -> None:
    """Check that an array can be labels, by its shape and dtype.

    Args:
        shape: Shape of the array.
        dtype: Dtype of the array.
        count: Number of images.
        where: Name of the array in messages, such as "arr_1 of x.npz".

    Raises:
        ValueError: If an array of this shape and dtype cannot be the labels of `count` images.
    """
    if tuple(shape) not in ((count,), (count, 1)) or dtype.kind not in "iuf":
        kind = "pickled Python objects" if dtype.hasobject else str(dtype)
        raise ValueError(
            f"{where} is {kind} of shape {tuple(shape)}; expected labels, whole numbers of shape ({count},), one per image"
        )


def as_labels(values: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Convert stored labels to int64.

    Args:
        values: Whole numbers of any integer or float dtype, (count,) or (count, 1).
        count: Number of images.
        where: Name of the array in messages, such as "arr_1 of x.npz".

    Returns:
        The labels, (count,) int64.

    Raises:
        ValueError: If the shape or dtype is wrong, or a number is not whole or does not fit in int64.
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
