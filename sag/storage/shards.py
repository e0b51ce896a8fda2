"""Samples on disk: shards written atomically, then packed by streaming into one npz as ADM's programs write it."""

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sag.storage.files import atomic
from sag.storage.images import Images, NpzImages


def quantise(x: Tensor) -> Images:
    """Images (N, C, H, W) in [-1, 1] as uint8 (N, H, W, C), as ADM does it: truncated (x + 1) * 127.5."""
    return ((x + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def write_shard(path: Path, images: Images, labels: Sequence[int] | None, indices: Sequence[int]) -> None:
    """Write images (N, H, W, C) uint8, their labels and their indices to one npz."""
    buffer, rows = io.BytesIO(), np.asarray(indices, dtype=np.int64)
    if labels is None:
        np.savez(buffer, arr_0=images, indices=rows)
    else:
        np.savez(buffer, arr_0=images, arr_1=np.asarray(labels, dtype=np.int64), indices=rows)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def pack(shards: Sequence[Path], indices: Sequence[int], target: Path) -> None:
    """Join shards, in the given order, into `target`: arr_0 (images) and, where shards have labels, arr_1; one shard in memory.

    Raises:
        ValueError: the shards do not hold exactly the samples `indices` in this order.
    """
    found: list[int] = []
    for shard in shards:
        with np.load(shard, allow_pickle=False) as arrays:
            found += arrays["indices"].tolist()
            keys = [key for key in ("arr_0", "arr_1") if key in arrays]
    if found != list(indices):
        raise ValueError(
            f"the shards beside {target} do not hold the samples asked for; remove {shards[0].parent} and run again"
        )
    with atomic(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for key in keys:
            with np.load(shards[0], allow_pickle=False) as arrays:
                first = arrays[key]
            parts = (_array(shard, key) for shard in shards)
            stream_array(archive, key, (len(found), *first.shape[1:]), first.dtype, parts)


def _array(shard: Path, key: str) -> NDArray[np.generic]:
    with np.load(shard, allow_pickle=False) as arrays:
        return arrays[key]


def stream_array(
    archive: zipfile.ZipFile, key: str, shape: Sequence[int], dtype: np.dtype, parts: Iterable[NDArray[np.generic]]
) -> None:
    """Write an array of `shape` to the npz `archive` from its parts, which follow each other along the first axis."""
    # ZipInfo's fixed date makes the same samples the same bytes
    with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
        header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).data)


def read_samples(path: Path) -> tuple[Images, NDArray[np.int64] | None]:
    """All images (N, H, W, C) uint8 and the labels (N,) of a shard or a small sample batch.

    Raises:
        As `NpzImages`.
    """
    source = NpzImages(path)
    return source.read(0, len(source)), source.labels()


def grid(images: Images) -> Images:
    """Tile images (N, H, W, C) into one (rows * H, columns * W, C), as square as possible; free places are black."""
    n, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:n] = images
    return (
        tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    )
