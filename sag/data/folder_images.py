"""The images of a folder: which of its files count, which classes they have, and how they are read."""

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

from sag.data.decoding import PNG, check, decode
from sag.data.levels import Images, check_range
from sag.data.sources import ImageSource
from sag.storage.digests import remembered_digests

Labels = Literal["folders", "names", "none"]
READ = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
BESIDE = (  # files that often lie beside images and are none; all others that are not read are reported
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf"),
    *(".log", ".ini", ".db", ".py", ".sh", ".sha256", ".md5"),
)
PART = re.compile(r"(train|training|val|valid|validation|test|testing|dev|eval)([\W_\d].*)?", re.IGNORECASE)  # of a data set
THREADS = 8


class FolderImages(ImageSource):
    """The images of a folder and its subfolders, in the order of their paths, as RGB or grey.

    Which files count and how they get their classes is said in `find_images` and `find_classes`.

    Args:
        path: The folder.
        size: None takes PNGs of one size as they are. A number, or (height, width), takes images of every format and size and
            brings them to that size as ADM did with its training images: halved by box filter while twice as large, bicubic
            until the size is covered, cropped around the centre.
        grey: One channel.
        value_range: The values (low, high) of files with one channel of 8, 16 or 32 bits that are to be the model's -1 and 1;
            the images are then grey, in 16-bit levels (see `from_values`).
        labels: Where the classes come from: "folders", "names" or "none"; None decides by the rule.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No images; a file or folder that cannot be read; not clear which classes are meant; without `size`, files
            that are no PNG; or, when they are read, images of other sizes, with transparent pixels, several frames, or more
            than 8 bits but no value_range.
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
    def fingerprint(self) -> str:
        """See `ImageSource.fingerprint`: a hash of the names, the contents and the options."""
        digest = sha256(repr(self._options).encode())
        try:
            contents = remembered_digests(self.files)
        except OSError as error:
            raise _unreadable(Path(error.filename or self.path), error) from error
        for name, content in zip(self._names, contents, strict=True):
            digest.update(os.fsencode(name) + b"\0" + content.encode())
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> Images:
        """See `ImageSource.read`.

        Raises:
            ValueError: A file that cannot be read, or of another size than the first.
        """
        return self.take(np.arange(start, min(stop, len(self))))

    def take(self, rows: NDArray[np.int64]) -> Images:
        """See `ImageSource.take`; raises as `read`."""
        files = [self.files[i] for i in rows.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(self._decode, files))
        for file, image in zip(files, images, strict=True):
            self._check_shape(file, image.shape[:2])
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), self._decode(self.files[0]).dtype)

    def labels(self) -> NDArray[np.int64] | None:
        """See `ImageSource.labels`: the numbers of the classes, whose names are sorted by code point."""
        return self._labels

    def verify(self) -> None:
        """See `ImageSource.verify`: the headers of all files, and the checksums of PNGs."""

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
            raise ValueError(f"{file} is {sizes[0]}, but {self.files[0].name} is {sizes[1]}; all images must be of one size")

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
    """The images of a folder.

    files: their paths relative to it, as strings with "/". folders: the names of its own subfolders, with or without images.
    left_out: how many files there are of each suffix that is neither read nor expected beside images.
    """

    files: list[str]
    folders: list[str]
    left_out: Counter[str]


def find_images(root: Path) -> Found:
    """The image files of a folder and its subfolders, folder by folder in the order of their names' code points.

    An image is a regular file with a suffix of `READ`, in small or capital letters. Files and folders whose names begin with
    "." do not count, nor do folders named __MACOSX. Links to files and folders are followed; a link back to a folder that it
    lies in is not.

    Args:
        root: The folder.

    Returns:
        What was found.

    Raises:
        ValueError: A link that leads nowhere, a folder that is reached twice, or one that cannot be read.
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
            if path.is_symlink() and path.suffix.lower() not in BESIDE:
                raise ValueError(f"{path} is a link to {os.readlink(path)}, which is not there; mend or remove it") from error
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
            elif suffix not in BESIDE:
                found.left_out[suffix] += 1
    return found


def find_classes(root: Path, found: Found, labels: Labels | None = None) -> list[str] | None:
    """The name of each image's class, or None if there are no classes.

    Where `labels` does not say it: if all images are in subfolders, the class is the first folder below the root. If none is,
    or all are directly in one folder, the class is what stands before the first "_" of a name, as in ADM's n01440764_18.JPEG,
    provided that all names have it. One class alone is no label. What could be meant in two ways is refused.

    Args:
        root: The folder, for the messages.
        found: What it holds.
        labels: "folders", "names", "none", or None.

    Returns:
        One name for each of `found.files`, or None.

    Raises:
        ValueError: Images beside class folders, class folders without images, parts of a data set in place of classes, or
            `labels` that these files do not have.
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
            f"{root} holds images beside folders of images: {loose[0]}{f' and {len(loose) - 1} more' * (len(loose) > 1)}; move "
            "each into the folder of its class, or say data.labels=none for no classes"
        )
    if labels is None:
        _check_level(root, nested, tops)
    empty = sorted({*found.folders} - {*tops})
    if empty:
        raise ValueError(
            f"{root / empty[0]} holds no images that are read, so that its class would be lost: move it elsewhere, or say "
            "data.labels=none for no classes"
        )
    return None if labels is None and len(tops) == 1 else [name.split("/")[0] for name in found.files]


def _check_level(root: Path, nested: list[str], tops: list[str]) -> None:
    """Raise a ValueError if the folders of `root` look like parts of a data set, each with classes of its own."""
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
            f"({root / (parts or tops)[0]}), or say data.labels=folders if they are classes, or data.labels=none for no classes"
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
            f"the names of images in {root} give no classes, because {len(without)} of {len(files)} have none before a _, the "
            f"first is {without[0]}",
            stacklevel=3,
        )
        return None
    return classes


def _listed(folder: Path) -> list[str]:
    """The names in a folder that count, last first."""
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
