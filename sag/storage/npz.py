"""The arrays of an npz and their headers. All errors are single sentences that name the file."""

import contextlib
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_END = struct.Struct("<4s4H2LH")  # the last record of a zip


@dataclass(frozen=True)
class Header:
    """The header of an array.

    Attributes:
        shape: Shape of the array.
        fortran: Whether the array is in Fortran order.
        dtype: Dtype of the array.
        start: Offset of the values in the member, in bytes.
        compressed: Whether the member is compressed.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int
    compressed: bool


class Npz:
    """An npz on a disk. Opening it reads the list of its arrays, but no array.

    Args:
        path: The file.

    Attributes:
        keys: Names of the arrays.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or is not an npz.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.damage_named():
            with open(path, "rb") as file:
                begin = file.read(6)
            if begin == b"\x93NUMPY" or begin[:1] == b"\x80":
                what = "it is a single array (npy)" if begin[:1] == b"\x93" else "it is pickled, and pickles are not loaded"
                raise _OtherFile(f"{path} is not an npz of arrays: {what}; save it with np.savez")
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            if len(members) != _stated_members(path):
                raise ValueError("its list of arrays is incomplete")
        self._members = {info.filename: info for info in members}
        if len(self._members) < len(members):
            raise ValueError(f"{path} holds two arrays of the same name, so it is not clear which is meant; save it again")
        self.keys = [name.removesuffix(".npy") for name in self._members if name.endswith(".npy")]

    def contents(self) -> str:
        """List the names of its members, for a message."""
        return ", ".join(sorted(name.removesuffix(".npy") for name in self._members)) or "nothing"

    def digest(self) -> str:
        """Return a hash of the names, sizes and checksums that the file states for its members."""
        members = sorted((info.filename, info.CRC, info.file_size) for info in self._members.values())
        return sha256(repr(members).encode()).hexdigest()

    def header(self, key: str) -> Header:
        """Read the header of an array, and check that the member has the length that it states.

        Args:
            key: Name of the array.

        Returns:
            The header.

        Raises:
            ValueError: If the array is damaged, encrypted, or not in NumPy's format.
        """
        info = self._members[f"{key}.npy"]
        with self.damage_named(), self.open(key) as member:
            try:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(member)
            except ValueError as error:
                raise ValueError(f"{key} has no readable header: {error}") from error
            start = member.tell()
            if min(shape, default=0) < 0:
                raise ValueError(f"{key} has the impossible shape {shape}")
            compressed = info.compress_type != zipfile.ZIP_STORED
            length = start + math.prod(shape) * dtype.itemsize
            if not dtype.hasobject and (info.file_size != length or not (compressed or info.compress_size == length)):
                raise ValueError(f"{key} has another length than its header says")
        return Header(tuple(shape), fortran, dtype, start, compressed)

    def array(self, key: str) -> NDArray[Any]:
        """Read a whole array and compare its checksum.

        Args:
            key: Name of the array.

        Returns:
            The array.

        Raises:
            ValueError: If `header` raises it, or the array has pickled objects.
        """
        header = self.header(key)
        if header.dtype.hasobject:
            raise ValueError(
                f"{key} of {self.path} holds pickled objects, which are not loaded; save it as an array of numbers"
            )
        with self.damage_named(), self.open(key) as member:
            array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        return array

    def verify(self) -> None:
        """Read the whole file in pieces and compare names and checksums.

        Raises:
            ValueError: If it is damaged.
        """
        with self.damage_named(), zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    while member.read(1 << 22):
                        pass

    def open(self, key: str) -> IO[bytes]:
        """Open an array as a stream of bytes, including its header."""
        return zipfile.ZipFile(self.path).open(f"{key}.npy")  # the zip file is closed together with it

    def place(self, key: str) -> int:
        """Return the offset in the file of an uncompressed array, including its header."""
        # The lengths in the member's own header may differ from those in the directory at the end of the file
        with self.damage_named(), open(self.path, "rb") as file:
            offset = self._members[f"{key}.npy"].header_offset
            file.seek(offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            return int(offset + 30 + name + extra)

    @contextlib.contextmanager
    def damage_named(self) -> Iterator[None]:
        """Convert all exceptions of zipfile, its decompressors and NumPy within the block to errors that name the file."""
        try:
            yield
        except _OtherFile:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no file at {self.path}") from error
        except OSError as error:
            if error.errno is None:
                raise self._damage(error) from error
            raise OSError(f"{self.path} cannot be read ({os.strerror(error.errno)})") from error
        except Exception as error:  # damaged files make them raise almost anything: RuntimeError, struct.error, MemoryError
            raise self._damage(error) from error

    def _damage(self, error: Exception) -> ValueError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return ValueError(f"{self.path} is not an npz, or is damaged ({reason}); make or download it again")


def _stated_members(path: Path) -> int:
    """Return the number of members that a zip states. zipfile does not compare it, and damage can hide a member."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - _END.size))
        tail = file.read()
    return int(_END.unpack_from(tail, tail.rfind(b"PK\5\6"))[4])


class _OtherFile(ValueError):
    """A file of a known kind that is not an npz."""
