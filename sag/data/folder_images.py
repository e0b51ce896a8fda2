"""The images of a folder: which files are images, what their classes are, and how they are read."""

import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from sag.data.decoding import PNG, check, decode
from sag.data.levels import Images, check_range
from sag.data.sources import ImageSource
from sag.storage.digests import remembered_digests

Labels = Literal["folders", "names", "none"]
READ = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
IGNORED = (  # files that often accompany images; all other files that are not read are reported
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf"),
    *(".log", ".ini", ".db", ".py", ".sh", ".sha256", ".md5"),
)
# Names of the parts of a data set
PART = re.compile(r"(train|training|val|valid|validation|test|testing|dev|eval)([\W_\d].*)?", re.IGNORECASE)
THREADS = 8


class FolderImages(ImageSource):
    """The images of a folder and its subfolders, in the order of their paths, as RGB or grey.

    `find_images` and `find_classes` describe which files are images and what their classes are. `labels` returns the indices
    of the class names, sorted by code points.

    Args:
        path: The folder.
        size: None to accept only PNGs of one size and leave them as they are. A number or (height, width) accepts images of
            all formats and sizes, and crops and resizes them with `centre_crop`.
        grey: Whether images have one channel instead of three.
        value_range: The values (low, high) that become -1 and 1 for the model, for files with one channel of 8, 16 or 32 bits.
            Images then have one channel and 16-bit levels (see `from_values`).
        labels: Where classes come from: "folders", "names" or "none". None decides by the rules of `find_classes`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are no images, a file or folder cannot be read, it is not clear what the classes are, or, without
            `size`, a file is not a PNG. When images are read, also if they differ in size, have transparent pixels or several
            frames, or have more than 8 bits without `value_range`.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | Sequence[int] | None = None,
        grey: bool = False,
        value_range: Sequence[float] | None = None,
        labels: Labels | None = None,
    ) -> None:
        self.path, self.grey = Path(path), grey
        self.value_range = None if value_range is None else check_range(value_range)
        self.size = None if size is None else _check_size(size)
        if labels not in (None, *get_args(Labels)):
            raise ValueError(f"labels must be folders, names, none or null, got {labels!r}")
        if not self.path.is_dir():
            raise FileNotFoundError(f"no folder {self.path}")
        found = find_images(self.path)
        left = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(found.left_out.items()))
        if not found.files:
            expected = ".png files" if self.size is None else f"{', '.join(READ)} files"
            raise ValueError(f"{self.path} holds no images; expected {expected}" + (f", and found {left}" if left else ""))
        if left:
            warnings.warn(f"{self.path} holds files that are not read and are left out: {left}", stacklevel=2)
        self._names, self._options = found.files, (self.size, grey, self.value_range, labels)
        self.files = [self.path / name for name in found.files]
        classes = find_classes(self.path, found, labels)
        self._labels = None if classes is None else np.unique(classes, return_inverse=True)[1].astype(np.int64)
        if self.size is None:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(self._check_png, self.files))
        self.shape = (len(self.files), *self._decode(self.files[0]).shape)

    @cached_property
    @override
    def fingerprint(self) -> str:
        digest = sha256(repr(self._options).encode())
        try:
            contents = remembered_digests(self.files)
        except OSError as error:
            raise _unreadable(Path(error.filename or self.path), error) from error
        for name, content in zip(self._names, contents, strict=True):
            digest.update(os.fsencode(name) + b"\0" + content.encode())
        return digest.hexdigest()

    @override
    def read(self, start: int, stop: int) -> Images:
        return self.take(np.arange(start, min(stop, len(self))))

    @override
    def take(self, rows: NDArray[np.int64]) -> Images:
        files = [self.files[i] for i in rows.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(self._decode, files))
        for file, image in zip(files, images, strict=True):
            self._check_shape(file, image.shape[:2])
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), self._decode(self.files[0]).dtype)

    @override
    def labels(self) -> NDArray[np.int64] | None:
        return self._labels

    @override
    def verify(self) -> None:
        def see(file: Path) -> None:
            found = check(file, self.size, self.value_range)
            if self.size is None:
                self._check_shape(file, found)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(see, self.files))

    def _decode(self, file: Path) -> Images:
        return decode(file, self.size, self.grey, self.value_range)

    def _check_shape(self, file: Path, size: tuple[int, ...]) -> None:
        if size != self.shape[1:3]:
            sizes = [f"{height}x{width}" for height, width in (size, self.shape[1:3])]
            raise ValueError(
                f"{file} is {sizes[0]}, but {self.files[0].name} is {sizes[1]}; all images must have the same size"
            )

    def _check_png(self, file: Path) -> None:
        try:
            with open(file, "rb") as content:
                if content.read(len(PNG)) == PNG:
                    return
        except OSError as error:
            raise _unreadable(file, error) from error
        check(file, None, self.value_range)


@dataclass(frozen=True)
class Found:
    """The files of a folder.

    Attributes:
        files: Paths of the images relative to the folder, with "/".
        folders: Names of the direct subfolders, with or without images.
        left_out: Number of files with each suffix that is neither in `READ` nor in `IGNORED`.
    """

    files: list[str]
    folders: list[str]
    left_out: Counter[str]


def find_images(root: Path) -> Found:
    """Find the images of a folder and its subfolders, folder by folder, in the order of the code points of their names.

    An image is a regular file with a suffix of `READ`, in lower or upper case. Files and folders whose names begin with "." are
    ignored, and so are folders named __MACOSX. Links to files and folders are followed, except links to a parent folder.

    Args:
        root: The folder.

    Returns:
        The files.

    Raises:
        ValueError: If a link is broken, a folder is reached twice, or a folder cannot be read.
    """
    found = Found([], [], Counter())
    home = os.path.realpath(root)
    seen = {home: "."}
    stack: list[tuple[str, tuple[str, ...]]] = [(name, (home,)) for name in _listed(root)]
    while stack:
        name, above = stack.pop()
        path = root / name
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if path.is_symlink() and path.suffix.lower() not in IGNORED:
                raise ValueError(f"{path} is a link to {os.readlink(path)}, which does not exist; mend or remove it") from error
            if path.is_symlink():
                continue
            raise _unreadable(path, error) from error
        if stat.S_ISDIR(mode):
            real = os.path.realpath(path)
            if real in above:
                continue
            if real in seen:
                raise ValueError(
                    f"{path} is the same folder as {root / seen[real]}, whose images would count twice; remove one"
                )
            seen[real] = name
            if "/" not in name:
                found.folders.append(name)
            stack += [(f"{name}/{inner}", (*above, real)) for inner in _listed(path)]
        elif stat.S_ISREG(mode):
            suffix = path.suffix.lower()
            if suffix in READ:
                found.files.append(name)
            elif suffix not in IGNORED:
                found.left_out[suffix] += 1
    return found


def find_classes(root: Path, found: Found, labels: Labels | None = None) -> list[str] | None:
    """Find the class of each image.

    If `labels` is None, these rules decide. If all images are in subfolders, an image's class is the first folder below the
    root. If no image is in a subfolder, or all are in a single one, its class is the part of its name before the first "_" (as
    in ADM's n01440764_18.JPEG), provided that all names have one. A single class does not count as labels. Ambiguous folders
    are errors.

    Args:
        root: The folder, for messages.
        found: Its files.
        labels: "folders", "names", "none", or None.

    Returns:
        One class name per image of `found.files`, or None if there are no classes.

    Raises:
        ValueError: If there are images next to class folders, class folders without images, or parts of a data set instead of
            classes, or if the files do not have the `labels` asked for.
    """
    if labels == "none":
        return None
    nested = [name for name in found.files if "/" in name]
    loose = [name for name in found.files if "/" not in name]
    tops = sorted({name.split("/")[0] for name in nested})
    in_one = not loose and len(found.folders) == 1 and all(name.count("/") == 1 for name in nested)
    if labels == "names" or (labels is None and (not nested or in_one)):
        return _classes_of_names(root, found.files, required=labels == "names")
    if loose:
        raise ValueError(
            f"{root} holds images next to folders of images: {loose[0]}{f' and {len(loose) - 1} more' * (len(loose) > 1)}; "
            "move each into the folder of its class, or set data.labels=none for no classes"
        )
    if labels is None:
        _check_level(root, nested, tops)
    empty = sorted({*found.folders} - {*tops})
    if empty:
        raise ValueError(
            f"{root / empty[0]} holds no images that can be read, so its class would be lost: move it elsewhere, or set "
            "data.labels=none for no classes"
        )
    return None if labels is None and len(tops) == 1 else [name.split("/")[0] for name in found.files]


def _check_level(root: Path, nested: list[str], tops: list[str]) -> None:
    """Raise a ValueError if the folders of `root` look like parts of a data set, each with its own class folders."""
    parts = [name for name in tops if PART.fullmatch(name)]
    inner: dict[str, set[str]] = {top: set() for top in tops}
    for name in nested:
        top, below = name.split("/", 1)
        inner[top].add(below.split("/")[0] if "/" in below else "")
    repeated = set.intersection(*inner.values()) - {""}
    if len(parts) >= 2 or (repeated and not any("" in names for names in inner.values())):
        shown = ", ".join((parts or tops)[:3])
        raise ValueError(
            f"{root} holds {shown}, which look like parts of a data set and not like classes: give one of them "
            f"({root / (parts or tops)[0]}), or set data.labels=folders if they are classes, or data.labels=none for no classes"
        )


def _classes_of_names(root: Path, files: list[str], *, required: bool) -> list[str] | None:
    names = [name.rsplit("/", 1)[-1].split("_") for name in files]
    classes = [parts[0] if len(parts) > 1 else "" for parts in names]
    without = [file for file, name in zip(files, classes, strict=True) if not name]
    if without and required:
        raise ValueError(f"{root / without[0]} has no class before a _ in its name; data.labels=names needs one in every name")
    if not required and len({*classes} - {""}) < 2:
        return None
    if without:
        warnings.warn(
            f"the images in {root} get no classes from their names, because {len(without)} of {len(files)} names have no class "
            f"before a _; the first is {without[0]}",
            stacklevel=3,
        )
        return None
    return classes


def _listed(folder: Path) -> list[str]:
    """Return the names in a folder that are not ignored, in reverse order."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted((name for name in names if not name.startswith(".") and name != "__MACOSX"), reverse=True)


def _check_size(size: int | Sequence[int]) -> tuple[int, int]:
    sizes = [size, size] if isinstance(size, int) else list(size)
    if len(sizes) != 2 or not all(isinstance(value, int) and value >= 1 for value in sizes):
        raise ValueError(f"size must be a number or [height, width] in pixels, got {size}")
    return sizes[0], sizes[1]


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path} cannot be read ({error.strerror or error})")
