"""The folder of a run, on a disk or on a blob store that blobfile supports (gs://, az://)."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from sag.storage.files import atomic


class Folder(ABC):
    """A folder of files, addressed by name ("shards/00000000.npz"). A file appears either complete or not at all."""

    @abstractmethod
    def names(self, within: str = "") -> set[str]:
        """Return the names of all files in the folder, or in its subfolder `within`; empty if it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: If there is no such file.
        """

    @abstractmethod
    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """Open a file that appears when the block ends without an exception. It replaces an existing file."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists, and return whether it was written.

        On a disk, one of several processes that try at once succeeds. On a blob store, several may succeed.
        """

    def exists(self, name: str) -> bool:
        """Return whether anything has this name: a file or, on a disk, also a folder or a broken link."""
        within, _, last = name.rpartition("/")
        return last in self.names(within)

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def remove_leftovers(self, within: str, names: str) -> None:
        """Remove unfinished files that killed processes left. Nobody may be writing these files meanwhile.

        Args:
            within: The subfolder, or "" for the folder itself.
            names: A regular expression for the names of the finished files.
        """

    @abstractmethod
    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Provide a file on this machine: the file itself, or a copy that exists until the block ends.

        Raises:
            FileNotFoundError: If there is no such file.
        """

    def write(self, name: str, content: bytes) -> None:
        """Write a file. It replaces an existing file."""
        with self.writer(name) as file:
            file.write(content)


class LocalFolder(Folder):
    """A folder on a disk, which may be shared between machines. It is made when the first file is written.

    `remove` also removes the subfolder if it is then empty, and the folder itself if this object made it.

    Args:
        path: The folder.

    Raises:
        ValueError: If the path is a file. Writing raises it if the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"out={path} is a file; give a folder")
        self.path = path
        self._made = False

    @override
    def __str__(self) -> str:
        return str(self.path)

    @override
    def exists(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    @override
    def names(self, within: str = "") -> set[str]:
        try:  # names of unfinished files begin with a dot
            return {entry.name for entry in os.scandir(self.path / within) if entry.is_file() and entry.name[0] != "."}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    @override
    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def _place(self, name: str) -> Path:
        path = self.path / name
        self._made |= not self.path.exists()
        try:
            with contextlib.suppress(FileNotFoundError):  # another process may remove an empty folder just now: try twice
                path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise ValueError(f"out={self.path} cannot be written ({error.strerror}); give another folder") from error
        return path

    @override
    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        with atomic(self._place(name)) as file:
            yield file

    @override
    def write(self, name: str, content: bytes) -> None:
        self._write(name, content, replace=True)

    @override
    def create(self, name: str, content: bytes) -> bool:
        try:
            self._write(name, content, replace=False)
        except FileExistsError:
            return False
        return True

    def _write(self, name: str, content: bytes, *, replace: bool) -> None:
        while True:
            with contextlib.suppress(FileNotFoundError):  # another process removed the folder just now: try again
                with atomic(self._place(name), replace=replace) as file:
                    file.write(content)
                return

    @override
    def remove(self, name: str) -> None:
        path = self.path / name
        path.unlink(missing_ok=True)
        self._remove_empty(path.parent)

    @override
    def remove_leftovers(self, within: str, names: str) -> None:
        unfinished = re.compile(rf"\.(?:{names})\..*\.part")
        for path in (self.path / within).glob(".*.part"):
            if unfinished.fullmatch(path.name):
                path.unlink(missing_ok=True)
        self._remove_empty(self.path / within)

    @override
    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self.path / name

    def _remove_empty(self, within: Path) -> None:
        with contextlib.suppress(OSError):  # it is not empty, or does not exist any more
            if within != self.path:
                within.rmdir()
            if self._made:
                self.path.rmdir()


class BlobFolder(Folder):
    """A folder on a blob store. blobfile finds the credentials and repeats failed requests.

    Args:
        url: A gs:// or az:// address.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        import blobfile  # here, as it takes a fifth of a second, and few runs are on a blob store

        self._blobs = blobfile.create_context(retry_limit=8, connect_timeout=10, log_callback=lambda message: None)

    @override
    def __str__(self) -> str:
        return self.url

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    @override
    def names(self, within: str = "") -> set[str]:
        try:
            return {entry.name for entry in self._blobs.scandir(self._at(within)) if entry.is_file}
        except FileNotFoundError:
            return set()

    @override
    def read(self, name: str) -> bytes:
        with self._blobs.BlobFile(self._at(name), "rb") as file:
            content: bytes = file.read()
        return content

    @override
    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as local:  # it is sent when it is complete
            yield local
            local.seek(0)
            with self._blobs.BlobFile(self._at(name), "wb") as remote:
                shutil.copyfileobj(local, remote, 1 << 22)

    @override
    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as copies:
            path = Path(copies) / Path(name).name
            with self._blobs.BlobFile(self._at(name), "rb") as remote, open(path, "xb") as copy:
                shutil.copyfileobj(remote, copy, 1 << 22)
            yield path

    @override
    def create(self, name: str, content: bytes) -> bool:
        if self._blobs.exists(self._at(name)):
            return False
        self.write(name, content)
        return True

    @override
    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._blobs.remove(self._at(name))


def open_folder(place: str) -> Folder:
    """Return the folder at a path, or at a gs:// or az:// address.

    Args:
        place: The path or address.

    Raises:
        ValueError: If it is a file, or an address of another kind.
    """
    if "://" not in place:
        return LocalFolder(Path(place))
    if not place.startswith(("gs://", "az://")):
        raise ValueError(f"out={place} is neither a path nor a gs:// or az:// address")
    return BlobFolder(place)
