"""Images in an npz in ADM's format. They may be larger than memory."""

import shutil
import tempfile
import warnings
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from sag.data.labels import as_labels, check_label_header
from sag.data.levels import Images
from sag.data.sources import ImageSource
from sag.storage.digests import remembered_digests
from sag.storage.npz import Header, Npz

BLOCK = 1 << 22
LARGE = 1 << 30  # unpacking more bytes than this takes long enough to be announced


class NpzImages(ImageSource):
    """The images in arr_0 of an npz, with their labels in arr_1 if it exists.

    Checksums are compared before the first image is read, and again only if the file has changed.

    A compressed file is read forwards. `read` starts again at its beginning to go back; `take` then unpacks arr_0 once, into a
    temporary file.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or is not an npz, arr_0 is missing or is not uint8 or uint16 (N, H, W, C), or arr_1
            is not its labels. `read`, `take` and `verify` raise it if the images are damaged.
        OSError: If there is no room for the temporary file (`take`).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._npz = Npz(self.path)
        if "arr_0" not in self._npz.keys:
            raise ValueError(f"{self.path} has no arr_0, the uint8 images; it holds: {self._npz.contents()}")
        header = self._npz.header("arr_0")
        _check_layout(self.path, header)
        self.shape = (header.shape[0], header.shape[1], header.shape[2], header.shape[3])
        self._row, self._dtype = header.shape[1] * header.shape[2] * header.shape[3], header.dtype
        self._labels = self._read_labels()
        self._begin = header.start  # where the values begin in the member
        self._plain: Path | IO[bytes] | None = None  # a file with the uncompressed values, which begin at self._begin
        if not header.compressed:
            self._plain = self.path
            self._begin += self._npz.place("arr_0")
        self._member: IO[bytes] | None = None

    @cached_property
    @override
    def fingerprint(self) -> str:
        return remembered_digests([self.path], _verified_digest)[0]

    @override
    def read(self, start: int, stop: int) -> Images:
        self.verify()
        count = (min(stop, len(self)) - start) * self._row
        place = self._begin + start * self._row * self._dtype.itemsize
        with self._npz.damage_named():
            if self._plain is not None:
                if not isinstance(self._plain, Path):
                    self._plain.seek(0)
                data = np.fromfile(self._plain, self._dtype, count, offset=place)
            else:
                if self._member is None or self._member.tell() > place:
                    self._member = self._npz.open("arr_0")  # it stays open for the next call
                self._member.seek(place)
                held = bytearray(self._member.read(count * self._dtype.itemsize))  # writable, since torch wants it
                data = np.frombuffer(held[: len(held) - len(held) % self._dtype.itemsize], self._dtype)
            if data.size != count:
                raise EOFError("it ends within arr_0")
        return data.reshape(-1, *self.shape[1:]).astype(self._dtype.newbyteorder("="), copy=False)

    @override
    def take(self, rows: NDArray[np.int64]) -> Images:
        places, inverse = np.unique(rows, return_inverse=True)
        runs = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
        first = self._begin + int(places[0]) * self._row * self._dtype.itemsize if len(places) else 0
        if self._plain is None and self._member is not None and self._member.tell() > first > 0:
            self._unpack()
        parts = [self.read(int(places[i]), int(places[j - 1]) + 1) for i, j in pairwise(runs) if i < j]
        return np.concatenate(parts)[inverse] if parts else self.read(0, 0)

    @override
    def labels(self) -> NDArray[np.int64] | None:
        return self._labels

    @override
    def verify(self) -> None:
        self.fingerprint  # noqa: B018, computing it compares the checksums

    def _read_labels(self) -> NDArray[np.int64] | None:
        if "arr_1" not in self._npz.keys:
            return None
        where, header = f"arr_1 of {self.path}", self._npz.header("arr_1")
        check_label_header(header.shape, header.dtype, len(self), where)
        return as_labels(self._npz.array("arr_1"), len(self), where)

    def _unpack(self) -> None:
        size = self._begin + len(self) * self._row * self._dtype.itemsize
        if size > LARGE:
            warnings.warn(f"{self.path} is compressed: unpacking {size >> 20} MB into {tempfile.gettempdir()}", stacklevel=3)
        file = tempfile.TemporaryFile()  # noqa: SIM115, it is deleted with this object
        try:
            with self._npz.damage_named(), self._npz.open("arr_0") as member:
                shutil.copyfileobj(member, file, BLOCK)
            file.flush()
        except OSError as error:
            reason = getattr(error.__cause__, "strerror", None) or error
            raise OSError(
                f"arr_0 of {self.path} cannot be unpacked into {tempfile.gettempdir()} ({reason}); save it with np.savez "
                "instead of np.savez_compressed, so that it can be read in any order"
            ) from error
        self._plain, self._member = file, None


def _check_layout(path: Path, header: Header) -> None:
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        raise ValueError(f"arr_0 of {path} has pickled Python objects, which are not loaded; save a uint8 array")
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        advice = "; quantise samples in [-1, 1] as trunc((x + 1) * 127.5)" if dtype.kind == "f" else ""
        raise ValueError(f"arr_0 of {path} is {dtype} of shape {shape}; expected uint8 or uint16 images (N, H, W, C){advice}")
    if len(shape) != 4 or (shape[1] in (1, 3) and shape[3] > 4):
        advice = "; this looks like (N, C, H, W): save images.transpose(0, 2, 3, 1)" if len(shape) == 4 else ""
        raise ValueError(f"arr_0 of {path} has shape {shape}; expected (N, H, W, C){advice}")
    if header.fortran:
        raise ValueError(f"arr_0 of {path} is in Fortran order; save np.ascontiguousarray(images)")
    if 0 in shape:
        raise ValueError(f"arr_0 of {path} holds no images")


def _verified_digest(path: Path) -> str:
    npz = Npz(path)
    npz.verify()
    return npz.digest()
