"""Samples on disk: shards, which are written atomically and then packed piece by piece into one npz in ADM's format."""

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

from sag.data.levels import Images
from sag.data.npz_images import NpzImages
from sag.storage.folders import Folder

FOLDER = "shards"  # in the folder of a run


class DamagedShard(ValueError):
    """A shard that is damaged.

    Attributes:
        name: Name of the shard.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is damaged ({reason})")
        self.name = name


@dataclass(frozen=True)
class Shard:
    """Some samples of a run.

    Args:
        images: (n, H, W, C) uint8 or uint16.
        labels: (n,) int64, or None.
        indices: Indices of the samples, (n,) int64.
        settings: The hash of the settings that determine the samples.
        made: Where and when the shard was made, for the status of the run. It is not part of the checksum.
    """

    images: Images
    labels: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    settings: str
    made: Mapping[str, Any] = field(default_factory=dict)

    def checksum(self) -> str:
        """Return a hash of everything except `made`."""
        digest = sha256(self.settings.encode())
        for array in (self.images, self.labels, self.indices):
            digest.update(b"none" if array is None else repr(array.shape).encode() + np.ascontiguousarray(array).data)
        return digest.hexdigest()


def shard_name(rows: range) -> str:
    """Return the name of the shard with these rows of a run."""
    return f"{rows.start:08d}-{rows.stop - 1:08d}.npz"


def shard_rows(name: str) -> range | None:
    """Return the rows of a shard by its name; None if this is not the name of a shard."""
    found = re.fullmatch(r"(\d{8,})-(\d{8,})\.npz", name)
    return None if found is None else range(int(found[1]), int(found[2]) + 1)


def write_shard(folder: Folder, name: str, shard: Shard) -> None:
    """Write a shard as one npz, with its checksum.

    Args:
        folder: The folder of the shard.
        name: Name of the shard in the folder.
        shard: The shard.
    """
    arrays: dict[str, NDArray[Any]] = {"arr_0": shard.images, "indices": shard.indices}
    if shard.labels is not None:
        arrays["arr_1"] = shard.labels
    texts = {"settings": shard.settings, "made": json.dumps(dict(shard.made)), "checksum": shard.checksum()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **{key: np.array(text) for key, text in texts.items()})  # type: ignore[arg-type]
    folder.write(name, buffer.getvalue())


def read_shard(folder: Folder, name: str) -> Shard:
    """Read a shard and compare its checksum.

    Args:
        folder: The folder of the shard.
        name: Name of the shard in the folder.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedShard: If it is truncated, changed, or not a shard.
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
    except Exception as error:  # damaged files make zipfile, its decompressors and NumPy raise almost anything
        raise DamagedShard(name, str(error).strip() or type(error).__name__) from error
    if checksum != shard.checksum():
        raise DamagedShard(name, "its checksum differs")
    return shard


Duplicates = Literal["refuse", "warn"]
"""What to do with samples whose images are equal."""


@dataclass(frozen=True)
class Contents:
    """The samples of several shards.

    Attributes:
        count: Number of images.
        shape: (H, W, C) of one image.
        dtype: uint8 or uint16.
        labels: (count,) int64, or None.
        made: `Shard.made` of each shard.
        warning: A warning about equal images, or None.
    """

    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
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
    """Read shards one at a time, and check that they have exactly the expected samples, in this order.

    Args:
        folder: The folder of the shards.
        names: Names of the shards.
        indices: Indices of the expected samples.
        settings: The hash of the expected settings.
        beat: Called before each shard is read.
        duplicates: "refuse" refuses any two equal images, and "warn" none. None refuses only what working noise cannot cause:
            images that are all equal, or two equal shards; single pairs, such as blank images, are a warning.

    Returns:
        A summary of the samples.

    Raises:
        DamagedShard: If a shard must be made again.
        ValueError: If shards have other settings or other samples, or equal images are refused.
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
            "if equal images are expected, use duplicates=warn"
        )
    warning = twins.describe(folder) if twins.pairs else None
    joined = np.concatenate(labels) if labels else None
    return Contents(len(found), shard.images.shape[1:], shard.images.dtype, joined, made, warning)


class _Twins:
    """Counts equal images among the shards that are added."""

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
        return f"samples {self._example[0]} and {self._example[1]} in {folder} are identical{more}"


def pack(
    folder: Folder, names: Sequence[str], contents: Contents, target: str, beat: Callable[[], None] = lambda: None
) -> None:
    """Join checked shards into one npz, one at a time. Its arrays are arr_0 (images) and arr_1 (labels, if there are any).

    Args:
        folder: The folder of the shards.
        names: Names of the shards.
        contents: The result of `check_shards`.
        target: Name of the npz in the folder.
        beat: Called before each shard is read.

    Raises:
        DamagedShard: If a shard was damaged after it was checked.
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
    dtype: np.dtype[Any],
    parts: Iterable[NDArray[np.generic]],
    *,
    compressed: bool = False,
) -> None:
    """Write an array to an npz in parts.

    Args:
        archive: The npz.
        key: Name of the array.
        shape: Shape of the whole array.
        dtype: Dtype of the array.
        parts: Consecutive parts of the array along its first axis.
        compressed: Whether to compress the array.
    """
    info = zipfile.ZipInfo(f"{key}.npy")  # its date is fixed, so equal samples give equal bytes
    info.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with archive.open(info, "w", force_zip64=True) as member:
        header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).data)


def read_samples(path: Path) -> tuple[Images, NDArray[np.int64] | None]:
    """Read all images (N, H, W, C) and labels (N,) of a shard or a small npz.

    Args:
        path: The npz.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If `NpzImages` rejects the file.
    """
    source = NpzImages(path)
    return source.read(0, len(source)), source.labels()
