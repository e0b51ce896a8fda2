"""Remote files in a cache. They are downloaded once, by one process at a time; downloads can be continued and are verified."""

import base64
import contextlib
import errno
import hashlib
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import blobfile
from filelock import FileLock
from tqdm import tqdm

BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # failed writes with these errors do not name the file
_MD5 = ("Content-MD5", "x-ms-blob-content-md5")  # headers with the MD5 sum of the whole file, even if a part is sent


class CacheError(OSError):
    """A cache cannot be written. The message names its folder and the environment variable that moves it."""


def cache_folder() -> Path:
    """Return the folder of the cache: $SAG_CACHE, or "sag" in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        CacheError: If neither variable is set and the user has no home folder.
    """
    if given := os.environ.get("SAG_CACHE"):
        return Path(given)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "sag"
    try:
        return Path.home() / ".cache/sag"
    except RuntimeError as error:
        raise CacheError("there is no home folder for the cache; set SAG_CACHE to a folder that can be written") from error


@contextlib.contextmanager
def writing_cache(folder: Path, root: Path | None = None, variable: str = "SAG_CACHE") -> Iterator[None]:
    """Make a folder in a cache, and convert errors in writing it to a `CacheError`.

    Args:
        folder: The folder that the block writes.
        root: The folder of the cache, for the message; by default `cache_folder()`.
        variable: The environment variable that sets the folder of the cache.

    Raises:
        CacheError: If the folder or a file in it cannot be written. Other errors of the block are not converted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        names = [Path(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
        if not any(n.is_relative_to(folder) or folder.is_relative_to(n) for n in names) and error.errno not in _FULL:
            raise
        reason = ": ".join(map(str, [error.strerror, *names[:1]]))
        raise CacheError(
            f"the cache folder {root or cache_folder()} cannot be written ({reason}); set {variable} to a folder that can be "
            "written and has room"
        ) from error


def cached(url: str) -> Path:
    """Return the path that a remote file has in the cache, whether it has been downloaded or not."""
    parts = urlsplit(url)
    return cache_folder() / parts.netloc / parts.path.lstrip("/")


def fetch(url: str) -> Path:
    """Download a remote file, unless it is in the cache, and return its path.

    An interrupted download is continued (http) or begun again. The file appears when it has the server's size and, if the
    server states one, MD5 sum. The checksums of a zip archive (npz, .pt) are compared too. If several processes on a file
    system need the file, one downloads it and the others wait.

    Args:
        url: An http(s)://, gs:// or az:// address.

    Returns:
        The path of the file in the cache.

    Raises:
        CacheError: If the cache cannot be written.
        OSError: If the server cannot be reached or refuses, or the file is incomplete or damaged.
    """
    target = cached(url)
    if os.path.exists(target):  # unlike Path.exists, it raises no error if a parent folder cannot be searched
        return target
    part = target.with_name(f".{target.name}.part")
    try:
        with writing_cache(target.parent), FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _download(url, part)
                os.replace(part, target)
    except CacheError:
        raise
    except (OSError, blobfile.Error) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise OSError(
            f"could not download {url}: {reason[:200]}; the same command tries again; without a network, copy the file to "
            f"{target}"
        ) from error
    return target


@dataclass(frozen=True)
class _Remote:
    """A remote file.

    Attributes:
        stream: The bytes from `start` on.
        start: Offset of the stream in the file.
        size: Size of the whole file in bytes; None if the server does not state it.
        md5: MD5 sum of the whole file; None if the server does not state it.
    """

    stream: BinaryIO
    start: int
    size: int | None
    md5: bytes | None = None


def _download(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    with _open(url, have) as remote, open(part, "r+b" if remote.start else "wb") as file:
        file.seek(remote.start)
        with tqdm(
            total=remote.size, initial=remote.start, desc=f"downloading {part.name[1:-5]}", unit="B", unit_scale=True
        ) as bar:
            while block := remote.stream.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if remote.size is not None and file.tell() != remote.size:
            raise OSError(f"the connection closed after {file.tell()} of {remote.size} bytes")
    damage = _damage(part, remote.md5)
    if damage:
        part.unlink()
        raise OSError(f"the downloaded file is damaged ({damage})")


def _damage(path: Path, md5: bytes | None) -> str | None:
    if md5 is not None:
        found = hashlib.md5(usedforsecurity=False)
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                found.update(block)
        if found.digest() != md5:
            return "its MD5 sum differs"
    try:
        if path.name.endswith(".npz.part") or zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                wrong = archive.testzip()
            return None if wrong is None else f"the checksum of {wrong} differs"
    except zipfile.BadZipFile as error:
        return str(error)
    return None


@contextlib.contextmanager
def _open(url: str, start: int) -> Iterator[_Remote]:
    if not url.startswith(("http://", "https://")):
        context = blobfile.create_context(retry_limit=5, connect_timeout=10, log_callback=lambda message: None)
        size = context.stat(url).size
        with context.BlobFile(url, "rb") as file:
            yield _Remote(file, 0, size)
        return
    # blobfile would look for credentials, which public files do not need
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part is at least as long as the file
            raise
        response = urllib.request.urlopen(url, timeout=60)
    with response:
        begin = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        md5 = next((base64.b64decode(value) for name in _MD5 if (value := response.headers.get(name))), None)
        yield _Remote(response, begin, None if length is None else begin + int(length), md5)


def remote_size(url: str) -> int | None:
    """Return the size of a remote file in bytes; None if the server does not state it.

    Args:
        url: An http(s)://, gs:// or az:// address.

    Raises:
        OSError: If the server cannot be reached or refuses.
    """
    with _open(url, 0) as remote:
        return remote.size
