"""Samples on disk: shards written atomically, then packed by streaming into one npz as ADM's programs write it."""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Images = NDArray[np.uint8]


def quantise(x: Tensor) -> Images:
    """Images (N, C, H, W) in [-1, 1] as uint8 (N, H, W, C), as ADM does it: truncated (x + 1) * 127.5."""
    return ((x + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under `path` when the block ends well, and not at all otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
            # ZipInfo's fixed date makes the same samples the same bytes
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                for position, shard in enumerate(shards):
                    with np.load(shard, allow_pickle=False) as arrays:
                        part = arrays[key]
                    if position == 0:
                        header = {"descr": part.dtype.str, "fortran_order": False, "shape": (len(found), *part.shape[1:])}
                        np.lib.format.write_array_header_1_0(member, header)
                    member.write(np.ascontiguousarray(part).data)


def read_samples(path: Path) -> tuple[Images, NDArray[np.int64] | None]:
    """Images (N, H, W, C) uint8 and labels (N,) of a sample batch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an npz with uint8 images in arr_0.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["arr_0"]
            labels = arrays.get("arr_1")
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a sample batch: expected an npz with uint8 NHWC images in arr_0 ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"arr_0 of {path} must be uint8 NHWC images, got {images.dtype} of shape {images.shape}")
    return images, labels


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
