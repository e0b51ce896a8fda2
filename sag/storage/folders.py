"""The folder of a run: on a disk, or on a blob store that blobfile speaks to (gs://, az://)."""

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

import blobfile

from sag.storage.files import atomic


class Folder(ABC):
    """Files by name, in the folder or in a folder within it ("shards/00000000.npz"); each appears whole or not at all."""

    @abstractmethod
    def names(self, within: str = "") -> set[str]:
        """The names of all files of the folder, or of the folder `within` it; none where it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: no such file.
        """

    @abstractmethod
    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A file that appears under `name` when the block ends well; it replaces what is there."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it is there; whether it was written. Of several who try at once, on a disk one succeeds."""

    def exists(self, name: str) -> bool:
        """Tell whether anything has this name: a file, on a disk also a folder or a broken link."""
        within, _, last = name.rpartition("/")
        return last in self.names(within)

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def remove_leftovers(self, within: str, names: str) -> None:
        """Remove the unfinished files that killed writers left; only while nobody writes these files.

        Args:
            within: The folder within, or "" for the folder itself.
            names: A regular expression of the names that they would have had.
        """

    @abstractmethod
    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Give the path of a file on this machine: the file itself, or a copy for as long as the block lasts.

        Raises:
            FileNotFoundError: no such file.
        """

    def write(self, name: str, content: bytes) -> None:
        """Write a file, replacing what is there."""
        with self.writer(name) as file:
            file.write(content)


class LocalFolder(Folder):
    """A folder on a disk, shared or not; made when the first file is written.

    Raises:
        ValueError: the path is a file; or, when it is written to, cannot be.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"out={path} is a file; give a folder")
        self.path = path
        self._made = False

    def __str__(self) -> str:
        return str(self.path)

    def exists(self, name: str) -> bool:
        """See `Folder.exists`."""
        return os.path.lexists(self.path / name)

    def names(self, within: str = "") -> set[str]:
        """See `Folder.names`; unfinished files are hidden."""
        try:
            return {entry.name for entry in os.scandir(self.path / within) if entry.is_file() and entry.name[0] != "."}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def read(self, name: str) -> bytes:
        """See `Folder.read`."""
        return (self.path / name).read_bytes()

    def _place(self, name: str) -> Path:
        path = self.path / name
        self._made |= not self.path.exists()
        try:
            with contextlib.suppress(FileNotFoundError):  # another process removed an empty folder just now: once more
                path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise ValueError(f"out={self.path} cannot be written ({error.strerror}); give another folder") from error
        return path

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """See `Folder.writer`."""
        with atomic(self._place(name)) as file:
            yield file

    def write(self, name: str, content: bytes) -> None:
        """See `Folder.write`."""
        self._write(name, content, replace=True)

    def create(self, name: str, content: bytes) -> bool:
        """See `Folder.create`."""
        try:
            self._write(name, content, replace=False)
        except FileExistsError:
            return False
        return True

    def _write(self, name: str, content: bytes, *, replace: bool) -> None:
        while True:
            with contextlib.suppress(FileNotFoundError):  # another process removed the folder just now: once more
                with atomic(self._place(name), replace=replace) as file:
                    file.write(content)
                return

    def remove(self, name: str) -> None:
        """See `Folder.remove`; a folder within that is then empty goes too, and the folder itself if this object made it."""
        path = self.path / name
        path.unlink(missing_ok=True)
        self._remove_empty(path.parent)

    def remove_leftovers(self, within: str, names: str) -> None:
        """See `Folder.remove_leftovers`."""
        unfinished = re.compile(rf"\.(?:{names})\..*\.part")
        for path in (self.path / within).glob(".*.part"):
            if unfinished.fullmatch(path.name):
                path.unlink(missing_ok=True)
        self._remove_empty(self.path / within)

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See `Folder.local`."""
        yield self.path / name

    def _remove_empty(self, within: Path) -> None:
        with contextlib.suppress(OSError):  # not empty, or gone
            if within != self.path:
                within.rmdir()
            if self._made:
                self.path.rmdir()


class BlobFolder(Folder):
    """A folder on a blob store; blobfile finds the credentials, and tries again where a request fails."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._blobs = blobfile.create_context(retry_limit=8, connect_timeout=10, log_callback=lambda message: None)

    def __str__(self) -> str:
        return self.url

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def names(self, within: str = "") -> set[str]:
        """See `Folder.names`."""
        try:
            return {entry.name for entry in self._blobs.scandir(self._at(within)) if entry.is_file}
        except FileNotFoundError:
            return set()

    def read(self, name: str) -> bytes:
        """See `Folder.read`."""
        with self._blobs.BlobFile(self._at(name), "rb") as file:
            return file.read()

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """See `Folder.writer`: written here, and sent when it is whole."""
        with tempfile.TemporaryFile() as local:
            yield local
            local.seek(0)
            with self._blobs.BlobFile(self._at(name), "wb") as remote:
                shutil.copyfileobj(local, remote, 1 << 22)

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See `Folder.local`."""
        with tempfile.TemporaryDirectory() as copies:
            path = Path(copies) / Path(name).name
            with self._blobs.BlobFile(self._at(name), "rb") as remote, open(path, "xb") as copy:
                shutil.copyfileobj(remote, copy, 1 << 22)
            yield path

    def create(self, name: str, content: bytes) -> bool:
        """See `Folder.create`; two who try at the same moment may both succeed."""
        if self._blobs.exists(self._at(name)):
            return False
        self.write(name, content)
        return True

    def remove(self, name: str) -> None:
        """See `Folder.remove`."""
        with contextlib.suppress(FileNotFoundError):
            self._blobs.remove(self._at(name))


def open_folder(place: str) -> Folder:
    """The folder at a path, or at a gs:// or az:// address.

    Raises:
        ValueError: a file, or an address of another kind.
    """
    if "://" not in place:
        return LocalFolder(Path(place))
    if not place.startswith(("gs://", "az://")):
        raise ValueError(f"out={place} is neither a path nor a gs:// or az:// address")
    return BlobFolder(place)
