"""Samples on disk: shards written atomically, then packed by streaming into one npz as ADM's programs write it."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sag.data.levels import Images, eight_bits
from sag.data.npz_images import NpzImages
from sag.storage.folders import Folder

FOLDER = "shards"  # in the folder of a run


class DamagedShard(ValueError):
    """A shard whose content is not what was written. `name`: which."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is damaged ({reason})")
        self.name = name


@dataclass(frozen=True)
class Shard:
    """Some samples of a run: images (n, H, W, C) uint8 or uint16, labels (n,) or None, indices (n,) int64.

    settings: a hash of all that decides the samples. made: where and when, for `status`; no part of the checksum.
    """

    images: Images
    labels: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    settings: str
    made: Mapping[str, Any] = field(default_factory=dict)

    def checksum(self) -> str:
        """A hash of all but `made`."""
        digest = sha256(self.settings.encode())
        for array in (self.images, self.labels, self.indices):
            digest.update(b"none" if array is None else repr(array.shape).encode() + np.ascontiguousarray(array).data)
        return digest.hexdigest()


def shard_name(rows: range) -> str:
    """Return the file name of the shard that holds these rows of a run."""
    return f"{rows.start:08d}-{rows.stop - 1:08d}.npz"


def shard_rows(name: str) -> range | None:
    """Return the rows that a shard of this name holds; None if it is not the name of a shard."""
    found = re.fullmatch(r"(\d{8,})-(\d{8,})\.npz", name)
    return None if found is None else range(int(found[1]), int(found[2]) + 1)


def write_shard(folder: Folder, name: str, shard: Shard) -> None:
    """Write a shard as one npz, with its checksum."""
    arrays: dict[str, NDArray[Any]] = {"arr_0": shard.images, "indices": shard.indices}
    if shard.labels is not None:
        arrays["arr_1"] = shard.labels
    texts = {"settings": shard.settings, "made": json.dumps(dict(shard.made)), "checksum": shard.checksum()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **{key: np.array(text) for key, text in texts.items()})  # type: ignore[arg-type]
    folder.write(name, buffer.getvalue())


def read_shard(folder: Folder, name: str) -> Shard:
    """Read a shard and compare its checksum.

    Raises:
        FileNotFoundError: it is not there.
        DamagedShard: truncated, changed, or no shard.
    """
    content = folder.read(name)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            shard = Shard(
                arrays["arr_0"],
                arrays.get("arr_1"),
                arrays["indices"],
                str(arrays["settings"]),
                json.loads(str(arrays["made"])),
            )
            checksum = str(arrays["checksum"])
    except Exception as error:  # what is damaged makes zipfile, its decompressors and NumPy raise nearly anything
        raise DamagedShard(name, str(error).strip() or type(error).__name__) from error
    if checksum != shard.checksum():
        raise DamagedShard(name, "its checksum is another")
    return shard


Duplicates = Literal["refuse", "warn"]
"""What becomes of samples with equal images."""


@dataclass(frozen=True)
class Contents:
    """What shards hold together.

    Attributes:
        count: How many images.
        shape: (H, W, C) of one.
        dtype: uint8 or uint16.
        labels: (count,) int64, or None.
        made: How each shard was made.
        warning: What a user must know of equal images, or None.
    """

    count: int
    shape: tuple[int, ...]
    dtype: np.dtype
    labels: NDArray[np.int64] | None
    made: Sequence[Mapping[str, Any]]
    warning: str | None = None


def check_shards(
    folder: Folder,
    names: Sequence[str],
    indices: Sequence[int],
    settings: str,
    beat: Callable[[], None] = lambda: None,
    duplicates: Duplicates | None = None,
) -> Contents:
    """Read shards, one at a time, and see that together, in the given order, they hold the samples `indices`.

    Args:
        folder: Where the shards are.
        names: The shards.
        indices: The samples that they should hold.
        settings: The hash of the settings that they should be made with.
        beat: Called before each.
        duplicates: "refuse" refuses any two equal images, "warn" none. None refuses what noise cannot do: images that are all
            equal, or a shard that repeats another one; single pairs, such as blank images, are a warning.

    Raises:
        DamagedShard: a shard that must be made again.
        ValueError: shards of other settings, that do not hold exactly the samples `indices`, or with equal images.
    """
    twins = _Twins()
    found: list[int] = []
    labels: list[NDArray[np.int64]] = []
    made: list[Mapping[str, Any]] = []
    for name in names:
        beat()
        shard = read_shard(folder, name)
        if shard.settings != settings:
            raise ValueError(f"{folder}/{name} is a shard of a run with other settings; remove it, or give another out")
        twins.add(shard)
        found += shard.indices.tolist()
        made.append(shard.made)
        if shard.labels is not None:
            labels.append(shard.labels)
    if found != list(indices):
        raise ValueError(f"the shards in {folder} do not hold the samples asked for; remove its folder shards and run again")
    if twins.pairs and (duplicates == "refuse" or (duplicates is None and twins.serious)):
        raise ValueError(
            f"{twins.describe(folder)}: something is wrong with the noise or the network, and nothing was packed; "
            "if equal images are right, duplicates=warn packs them"
        )
    warning = twins.describe(folder) if twins.pairs else None
    joined = np.concatenate(labels) if labels else None
    return Contents(len(found), shard.images.shape[1:], shard.images.dtype, joined, made, warning)


class _Twins:
    """Equal images among the shards that are added."""

    def __init__(self) -> None:
        self.pairs = 0
        self._count = 0
        self._first: dict[bytes, int] = {}
        self._example = (0, 0)
        self._shards: set[bytes] = set()
        self._repeated = False

    @property
    def serious(self) -> bool:
        """Whether all images are equal, or a shard of several images repeats another."""
        return self._repeated or 0 < self.pairs == self._count - 1

    def add(self, shard: Shard) -> None:
        digests = [sha256(np.ascontiguousarray(image).data).digest() for image in shard.images]
        for index, digest in zip(shard.indices.tolist(), digests, strict=True):
            twin = self._first.setdefault(digest, index)
            if twin != index:
                self._example = self._example if self.pairs else (twin, index)
                self.pairs += 1
        self._count += len(digests)
        whole = sha256(b"".join(digests)).digest()
        self._repeated |= len(digests) > 1 and whole in self._shards
        self._shards.add(whole)

    def describe(self, folder: Folder) -> str:
        more = "" if self.pairs == 1 else f", and {self.pairs - 1} more repeat earlier ones"
        return f"samples {self._example[0]} and {self._example[1]} in {folder} are equal to the bit{more}"


def pack(
    folder: Folder, names: Sequence[str], contents: Contents, target: str, beat: Callable[[], None] = lambda: None
) -> None:
    """Join shards that are checked, one at a time, into the file `target`: arr_0 (images) and, with labels, arr_1.

    Raises:
        DamagedShard: a shard was damaged since.
    """
    with folder.writer(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        parts = _images(folder, names, beat)
        stream_array(archive, "arr_0", (contents.count, *contents.shape), contents.dtype, parts)
        if contents.labels is not None:
            stream_array(archive, "arr_1", contents.labels.shape, np.dtype(np.int64), [contents.labels])


def _images(folder: Folder, names: Sequence[str], beat: Callable[[], None]) -> Iterator[Images]:
    for name in names:
        beat()
        yield read_shard(folder, name).images


def stream_array(
    archive: zipfile.ZipFile,
    key: str,
    shape: Sequence[int],
    dtype: np.dtype,
    parts: Iterable[NDArray[np.generic]],
    *,
    compressed: bool = False,
) -> None:
    """Write an array of `shape` to the npz `archive` from its parts, which follow each other along the first axis."""
    info = zipfile.ZipInfo(f"{key}.npy")  # its fixed date makes the same samples the same bytes
    info.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with archive.open(info, "w", force_zip64=True) as member:
        header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).data)


def read_samples(path: Path) -> tuple[Images, NDArray[np.int64] | None]:
    """All images (N, H, W, C) and the labels (N,) of a shard or a small sample batch.

    Raises:
        As `NpzImages`.
    """
    source = NpzImages(path)
    return source.read(0, len(source)), source.labels()


def picture(images: Images) -> NDArray[np.uint8]:
    """Tile images (N, H, W, C) into one as PIL takes it, (rows * H, columns * W, 3) or without the last axis in grey.

    The tiling is as square as possible, and free places are black. Of other than three channels the first is shown.
    """
    n, height, width, channels = images.shape
    shown = 3 if channels == 3 else 1
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    tiles = np.zeros((rows * columns, height, width, shown), np.uint8)
    tiles[:n] = eight_bits(images[..., :shown])
    tiled = tiles.reshape(rows, columns, height, width, shown).swapaxes(1, 2)
    return np.squeeze(tiled.reshape(rows * height, columns * width, shown), 2 if shown == 1 else ())
