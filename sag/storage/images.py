"""Collections of images, read a few at a time: an npz as ADM writes it, a folder of image files, an array."""

import contextlib
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sag.storage.levels import Images, from_values

LOSSLESS = {".png"}
LOSSY = {".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class ImageSource(ABC):
    """Images of one size, in levels of 8 or 16 bits: `shape` is (N, H, W, C), `fingerprint` changes when the images do."""

    shape: tuple[int, int, int, int]
    fingerprint: str

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def read(self, start: int, stop: int) -> Images:
        """Images start to stop - 1, uint8 or uint16 (n, H, W, C)."""

    def take(self, rows: NDArray[np.int64]) -> Images:
        """The images of any rows, uint8 or uint16 (n, H, W, C)."""
        return np.concatenate([self.read(i, i + 1) for i in rows.tolist()])

    def labels(self) -> NDArray[np.int64] | None:
        """The labels (N,), or None where there are none."""
        return None

    def verify(self) -> None:
        """Raise a ValueError if the stored bytes are not those that were written, as far as the format can tell."""


class ArrayImages(ImageSource):
    """Images that are in memory, uint8 or uint16 (N, H, W, C), and their labels (N,) if there are any."""

    def __init__(self, images: Images, labels: NDArray[np.int64] | None = None) -> None:
        self.images, self.shape, self._labels = images, images.shape, labels
        self.fingerprint = sha256(np.ascontiguousarray(images).data).hexdigest()

    def read(self, start: int, stop: int) -> Images:
        """See `ImageSource.read`."""
        return self.images[start:stop]

    def take(self, rows: NDArray[np.int64]) -> Images:
        """See `ImageSource.take`."""
        return self.images[rows]

    def labels(self) -> NDArray[np.int64] | None:
        """See `ImageSource.labels`."""
        return self._labels


class SelectedImages(ImageSource):
    """Some images of a source: `rows`, (n,) indices."""

    def __init__(self, source: ImageSource, rows: NDArray[np.int64]) -> None:
        self.source, self.rows = source, rows
        self.shape = (len(rows), *source.shape[1:])
        self.fingerprint = sha256(source.fingerprint.encode() + rows.tobytes()).hexdigest()

    def read(self, start: int, stop: int) -> Images:
        """See `ImageSource.read`."""
        return self.source.take(self.rows[start:stop])

    def take(self, rows: NDArray[np.int64]) -> Images:
        """See `ImageSource.take`."""
        return self.source.take(self.rows[rows])

    def labels(self) -> NDArray[np.int64] | None:
        """See `ImageSource.labels`."""
        labels = self.source.labels()
        return None if labels is None else labels[self.rows]

    def verify(self) -> None:
        """See `ImageSource.verify`."""
        self.source.verify()


class NpzImages(ImageSource):
    """The images in arr_0 of an npz, which may be larger than memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an npz; damaged; no arr_0; or arr_0 is neither uint8 nor uint16 NHWC.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with _damage_named(self.path), zipfile.ZipFile(self.path) as archive:
            members = sorted((info.filename, info.CRC, info.file_size) for info in archive.infolist())
            if "arr_0.npy" not in archive.namelist():
                held = ", ".join(name.removesuffix(".npy") for name, _, _ in members)
                raise ValueError(f"{self.path} has no arr_0, the uint8 images; it holds: {held}")
            info = archive.getinfo("arr_0.npy")
            with archive.open(info) as member:
                shape, fortran, dtype = _read_header(member)
                self._header = member.tell()
            stored = info.compress_type == zipfile.ZIP_STORED
            self._offset = _data_offset(self.path, info) + self._header if stored else None
        _check_layout(self.path, shape, fortran, dtype)
        self.shape = (shape[0], shape[1], shape[2], shape[3])
        self._row, self._dtype = int(np.prod(shape[1:])), dtype
        if info.file_size != self._header + shape[0] * self._row * dtype.itemsize:
            raise ValueError(
                f"{self.path} is damaged (arr_0 has another length than its header says); make or download it again"
            )
        self.fingerprint = sha256(repr(members).encode()).hexdigest()
        self._member: IO[bytes] | None = None

    def read(self, start: int, stop: int) -> Images:
        """See `ImageSource.read`. A compressed file is read forward: a step back costs reading it again from its beginning.

        Raises:
            ValueError: the file is damaged.
        """
        count = (min(stop, len(self)) - start) * self._row
        with _damage_named(self.path):
            if self._offset is not None:
                place = self._offset + start * self._row * self._dtype.itemsize
                data = np.fromfile(self.path, self._dtype, count, offset=place)
            else:
                place = self._header + start * self._row * self._dtype.itemsize
                if self._member is None or self._member.tell() > place:
                    self._member = zipfile.ZipFile(self.path).open("arr_0.npy")  # noqa: SIM115, it stays open for the next call
                self._member.seek(place)
                held = bytearray(self._member.read(count * self._dtype.itemsize))  # can be written, as torch wants
                data = np.frombuffer(held[: len(held) - len(held) % self._dtype.itemsize], self._dtype)
            if data.size != count:
                raise EOFError("it ends within arr_0")
        return data.reshape(-1, *self.shape[1:])

    def verify(self) -> None:
        """Read arr_0 once and compare its checksum; see `ImageSource.verify`."""
        with _damage_named(self.path), zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as member:
            while member.read(1 << 22):
                pass

    def labels(self) -> NDArray[np.int64] | None:
        """The labels in arr_1, (N,), or None."""
        with np.load(self.path, allow_pickle=False) as arrays:
            return arrays.get("arr_1")


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not an npz, or is damaged ({error}); make or download it again") from error


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(member)
    except ValueError as error:
        raise zipfile.BadZipFile(f"arr_0 has no readable header: {error}") from error


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    # the lengths in a member's own header may differ from those in the directory at the end
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(info.header_offset + 30 + name + extra)


def _check_layout(path: Path, shape: Sequence[int], fortran: bool, dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise ValueError(f"arr_0 of {path} is pickled Python objects, which are not loaded; save a uint8 array")
    if dtype not in (np.uint8, np.uint16):
        advice = "; quantise samples in [-1, 1] as trunc((x + 1) * 127.5)" if dtype.kind == "f" else ""
        raise ValueError(
            f"arr_0 of {path} is {dtype} of shape {tuple(shape)}; expected uint8 or uint16 images (N, H, W, C){advice}"
        )
    if len(shape) != 4 or (shape[1] in (1, 3) and shape[3] > 4):
        advice = "; this looks like (N, C, H, W): save images.transpose(0, 2, 3, 1)" if len(shape) == 4 else ""
        raise ValueError(f"arr_0 of {path} has shape {tuple(shape)}; expected (N, H, W, C){advice}")
    if fortran:
        raise ValueError(f"arr_0 of {path} is in Fortran order; save np.ascontiguousarray(images)")
    if shape[0] == 0:
        raise ValueError(f"arr_0 of {path} holds no images")


class FolderImages(ImageSource):
    """The image files of a folder and its subfolders, in the order of their paths, as RGB or grey.

    size: None takes PNGs of one size as they are. A number, or (height, width), takes any image, and brings it to that size as
    ADM did with its training images: halved by box filter while twice as large, bicubic until it covers the size, cropped
    around the centre. grey: one channel. value_range: the values (low, high) of files with one channel of 8, 16 or 32 bits that
    are to be the model's -1 and 1; the images are then grey, in 16-bit levels (see `from_values`).

    Raises:
        ValueError: no images, lossy files without `size`, or (when read) images of other sizes, with alpha, or with 16 bits but
            no value_range.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | Sequence[int] | None = None,
        grey: bool = False,
        value_range: Sequence[float] | None = None,
    ) -> None:
        self.path, self.grey, self.value_range = Path(path), grey, value_range
        self.size = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size must be a number or [height, width] in pixels, got {size}")
        if not self.path.is_dir():
            raise FileNotFoundError(f"no folder {self.path}")
        self.files = sorted(file for file in self.path.rglob("*") if file.suffix.lower() in LOSSLESS | LOSSY)
        if not self.files:
            raise ValueError(f"{self.path} holds no images; expected .png files")
        lossy = [file for file in self.files if file.suffix.lower() not in LOSSLESS]
        if lossy and self.size is None:
            raise ValueError(
                f"{lossy[0]} is not a PNG: lossy or converted images score differently from what the model wrote; save PNGs"
            )
        self.shape = (len(self.files), *self._decode(self.files[0]).shape)
        stats = [(str(file.relative_to(self.path)), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        options = (self.size, grey, None if value_range is None else tuple(value_range))
        self.fingerprint = sha256(repr((stats, options)).encode()).hexdigest()

    def read(self, start: int, stop: int) -> Images:
        """See `ImageSource.read`.

        Raises:
            ValueError: a file that cannot be read, or of another size than the first.
        """
        return self.take(np.arange(start, min(stop, len(self))))

    def take(self, rows: NDArray[np.int64]) -> Images:
        """See `ImageSource.take`; raises as `read`."""
        files = [self.files[i] for i in rows.tolist()]
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(self._decode, files))
        for file, image in zip(files, images, strict=True):
            if image.shape != self.shape[1:]:
                sizes = [f"{shape[0]}x{shape[1]}" for shape in (image.shape, self.shape[1:])]
                raise ValueError(
                    f"{file} is {sizes[0]}, but {self.files[0].name} is {sizes[1]}; all images must be of one size"
                )
        return np.stack(images)

    def labels(self) -> NDArray[np.int64] | None:
        """The number of each image's class: its subfolder, or what its name has before "_", in alphabetic order; or None."""
        paths = [file.relative_to(self.path) for file in self.files]
        if all(len(path.parts) > 1 for path in paths):
            names = [path.parts[0] for path in paths]
        elif all("_" in path.name for path in paths):
            names = [path.name.split("_")[0] for path in paths]
        else:
            return None
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    def _decode(self, file: Path) -> Images:
        try:
            with Image.open(file) as image:
                image.load()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{file} is not a readable image ({error})") from error
        deep = image.mode.startswith(("I", "F"))
        if self.value_range is not None:
            if not deep and image.mode != "L":
                raise ValueError(f"{file} has mode {image.mode}; with value_range, expected one channel of 8, 16 or 32 bits")
            values = Image.fromarray(np.asarray(image, np.float32))
            cut = values if self.size is None else centre_crop(values, *self.size)
            return from_values(np.asarray(cut)[..., None], self.value_range)
        if deep:
            raise ValueError(
                f"{file} has mode {image.mode}, more than 8 bits; expected 8-bit grey or RGB, or say with "
                "value_range=[low, high] which values are black and white"
            )
        if image.mode not in ("L", "RGB", "P", "1") and self.size is None:
            raise ValueError(f"{file} has mode {image.mode}; expected 8-bit grey or RGB without alpha")
        shown = image.convert("L" if self.grey else "RGB")
        levels = np.asarray(shown if self.size is None else centre_crop(shown, *self.size))
        return levels[..., None] if self.grey else levels


def centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Crop and resize to height x width with the filters that ADM's training data went through."""
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def open_images(path: str | Path) -> ImageSource:
    """The images of an npz or of a folder of PNGs.

    Raises:
        As `NpzImages` and `FolderImages`.
    """
    return FolderImages(path) if Path(path).is_dir() else NpzImages(path)
