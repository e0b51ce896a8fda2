"""What counts as labels, and what is refused before any work starts."""

import numpy as np
import pytest

from evaluations.batches import open_batch
from sag.data import ArrayImages, NpzImages, open_images

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)

GOOD = {
    **{
        f"{dtype}": np.array([3, 0, 1, 2], dtype) for dtype in ("int8", "uint8", ">i2", "int64", "uint64", "float16", "float64")
    },
    "a column": np.array([[3], [0], [1], [2]]),
    "whole floats in a column": np.array([[3.0], [0.0], [1.0], [2.0]], np.float32),
}


@pytest.mark.parametrize("kind", GOOD)
def test_whole_numbers_of_any_type_become_int64(tmp_path, kind):
    np.savez(tmp_path / "x.npz", IMAGES, GOOD[kind])
    for labels in (open_images(tmp_path / "x.npz").labels(), ArrayImages(IMAGES, GOOD[kind]).labels()):
        assert (labels.dtype, labels.tolist()) == (np.int64, [3, 0, 1, 2])


BAD = {
    "too few": (np.arange(3), r"int64 of shape \(3,\); expected labels, whole numbers of shape \(4,\)"),
    "one hot": (np.eye(4), r"float64 of shape \(4, 4\)"),
    "a row": (np.arange(4)[None], r"int64 of shape \(1, 4\)"),
    "one number": (np.array(3), r"int64 of shape \(\)"),
    "NaN": (np.array([0, 1, np.nan, 2]), r"float64 of shape \(4,\)\) holds nan at place 2; labels are whole numbers"),
    "a fraction": (np.array([0, 1, 3.5, 2]), "holds 3.5 at place 2"),
    "infinite": (np.array([0, 1, np.inf, 2]), "holds inf at place 2"),
    "too large": (np.array([0, 2**63, 1, 2], np.uint64), "holds 9223372036854775808 at place 1"),
    "a float that stands for several": (np.full(4, 1e17), r"holds 1e\+17 at place 0"),
    "text": (np.array(list("abcd")), r"<U1 of shape \(4,\)"),
    "bool": (np.ones(4, bool), r"bool of shape \(4,\)"),
    "complex": (np.ones(4, complex), r"complex128 of shape \(4,\)"),
    "objects": (np.array([{}, 1, 2, 3], object), r"pickled Python objects of shape \(4,\)"),
    "dates": (np.zeros(4, "M8[s]"), r"datetime64\[s\] of shape \(4,\)"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("opened", [NpzImages, open_batch])
def test_other_labels_are_refused_when_the_file_is_opened(tmp_path, kind, opened):
    labels, message = BAD[kind]
    np.savez(tmp_path / "x.npz", IMAGES, labels)
    with pytest.raises(ValueError, match=rf"^arr_1 of .*x\.npz .*{message}"):
        opened(tmp_path / "x.npz")


def test_labels_in_memory_are_checked_too():
    with pytest.raises(ValueError, match=r"the array of labels is float64 of shape \(4, 4\)"):
        ArrayImages(IMAGES, np.eye(4))
