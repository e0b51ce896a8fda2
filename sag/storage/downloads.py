"""Remote files in a cache: downloaded once, by one process at a time, continued where it stopped, and verified."""

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
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a write that fails so tells no name of a file
_MD5 = ("Content-MD5", "x-ms-blob-content-md5")  # of a whole file, also where a part is sent


class CacheError(OSError):
    """A cache cannot be written. The message names its folder and the variable that moves it."""


def cache_folder() -> Path:
    """Where downloads are kept: $SAG_CACHE, or "sag" in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        CacheError: neither variable is set, and this user has no home folder.
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
    """Make a folder of a cache, and say what to do when it cannot be made or written in the block.

    Args:
        folder: the folder that is written.
        root: the cache it belongs to, for the message; None takes `cache_folder()`.
        variable: the environment variable that says where the cache is.

    Raises:
        CacheError: the folder or a file in it cannot be written. Other errors of the block are passed on.
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
    """Where the cache has a remote file, or would have it."""
    parts = urlsplit(url)
    return cache_folder() / parts.netloc / parts.path.lstrip("/")


def fetch(url: str) -> Path:
    """Download a remote file into the cache, or find it there; returns its path.

    What an earlier try left is continued (http) or begun again; the file appears under its name when it has the size, and
    where the server states one the MD5 sum, that the server says, and if it is a zip archive (npz, .pt) when all its
    checksums are right. Processes on one file system wait for one of them to do it.

    Args:
        url: http(s), gs:// or az://.

    Raises:
        CacheError: the cache cannot be written.
        OSError: no connection, a refusal, fewer bytes than stated, or other bytes.
    """
    target = cached(url)
    if os.path.exists(target):  # unlike the method of Path no error where a folder above cannot be searched
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
            f"could not download {url}: {reason[:200]}; the same command tries again, and where there is no network, "
            f"copy the file to {target}"
        ) from error
    return target


@dataclass(frozen=True)
class _Remote:
    """A stream of the bytes from `start` on; size and md5 of the whole file, None where the server does not say."""

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
        raise OSError(f"what came is damaged ({damage})")


def _damage(path: Path, md5: bytes | None) -> str | None:
    if md5 is not None:
        found = hashlib.md5(usedforsecurity=False)
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                found.update(block)
        if found.digest() != md5:
            return "its MD5 sum is another"
    try:
        if path.name.endswith(".npz.part") or zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                wrong = archive.testzip()
            return None if wrong is None else f"the checksum of {wrong} is another"
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
    # public files need no credentials, which blobfile would look for
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is as long as the file, or longer
            raise
        response = urllib.request.urlopen(url, timeout=60)
    with response:
        begin = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        md5 = next((base64.b64decode(value) for name in _MD5 if (value := response.headers.get(name))), None)
        yield _Remote(response, begin, None if length is None else begin + int(length), md5)


def remote_size(url: str) -> int | None:
    """Bytes of a remote file; None where the server does not say.

    Raises:
        OSError: no connection, or a refusal.
    """
    with _open(url, 0) as remote:
        return remote.size
