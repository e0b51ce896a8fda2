"""Remote files in a cache. They are downloaded once, by one process at a time; downloads can be continued and are verified."""

import base64
import contextlib
import errno
import hashlib
import os
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from filelock import FileLock
from tqdm import tqdm

BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # failed writes with these errors do not name the file
_DIGEST = re.compile(r"#(sha256|md5)=([0-9a-f]{8,})$")
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


def without_digest(url: str) -> str:
    """Return an address without "#sha256=..." or "#md5=...", by which it may say how a hash of the file starts."""
    return _DIGEST.sub("", url)


def cached(url: str) -> Path:
    """Return the path that a remote file has in the cache, whether it has been downloaded or not."""
    parts = urlsplit(without_digest(url))
    return cache_folder() / parts.netloc / parts.path.lstrip("/")


def fetch(
    url: str, target: Path | None = None, *, root: Path | None = None, variable: str = "SAG_CACHE", advice: str = ""
) -> Path:
    """Download a remote file, unless it is there, and return its path.

    An interrupted download is continued (http) or begun again. The file appears when it has the server's size and the hashes
    that the address and the server state. The checksums of a zip archive (npz, .pt) are compared too. If several processes on
    a file system need the file, one downloads it and the others wait.

    Args:
        url: An http(s)://, gs:// or az:// address. It may end in "#sha256=" or "#md5=" and the first 8 or more digits of the
            file's hash.
        target: The path of the file; by default in the cache, see `cached`.
        root: The folder of the cache that `target` is in, for messages; by default `cache_folder()`.
        variable: The environment variable that sets this folder.
        advice: What else a user can do without a network, for the message.

    Returns:
        The path of the file.

    Raises:
        CacheError: If the cache cannot be written.
        OSError: If the server cannot be reached or refuses, or the file is incomplete, damaged, or another one.
    """
    target = target or cached(url)
    if os.path.exists(target):  # unlike Path.exists, it raises no error if a parent folder cannot be searched
        return target
    part = target.with_name(f".{target.name}.part")
    try:
        with writing_cache(target.parent, root, variable), FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _download(url, part)
                os.replace(part, target)
    except CacheError:
        raise
    except OSError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise OSError(
            f"could not download {without_digest(url)}: {reason[:200]}; the same command tries again; without a network, copy "
            f"the file to {target}{advice}"
        ) from error
    return target


@dataclass(frozen=True)
class _Remote:
    """A remote file.

    Attributes:
        stream: The bytes from `start` on.
        start: Offset of the stream in the file.
        size: Size of the whole file in bytes; None if the server does not state it.
        md5: MD5 sum of the whole file in hexadecimal digits; None if the server does not state it.
    """

    stream: BinaryIO
    start: int
    size: int | None
    md5: str | None = None


def _download(url: str, part: Path) -> None:
    stated = _DIGEST.search(url)
    have = part.stat().st_size if part.exists() else 0
    with _open(without_digest(url), have) as remote, open(part, "r+b" if remote.start else "wb") as file:
        file.seek(remote.start)
        with tqdm(
            total=remote.size, initial=remote.start, desc=f"downloading {part.name[1:-5]}", unit="B", unit_scale=True
        ) as bar:
            while block := remote.stream.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if remote.size is not None and file.tell() != remote.size:
            raise OSError(f"the connection closed after {file.tell()} of {remote.size} bytes")
    hashes = {} if remote.md5 is None else {"md5": remote.md5}
    if stated is not None:
        hashes[stated[1]] = stated[2]
    damage = _damage(part, hashes)
    if damage:
        part.unlink()
        raise OSError(f"the downloaded file is damaged or another one ({damage})")


def _damage(path: Path, hashes: Mapping[str, str]) -> str | None:
    for name, expected in hashes.items():
        with open(path, "rb") as file:
            found = _hash(file, name)
        if not found.startswith(expected):
            return f"its {name} starts with {found[:8]}, expected {expected[:8]}"
    try:
        if path.name.endswith(".npz.part") or zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                wrong = archive.testzip()
            return None if wrong is None else f"the checksum of {wrong} differs"
    except zipfile.BadZipFile as error:
        return str(error)
    return None


def _hash(file: BinaryIO, name: str) -> str:
    found = hashlib.new(name, usedforsecurity=False)
    while block := file.read(BLOCK):
        found.update(block)
    return found.hexdigest()


@contextlib.contextmanager
def _open(url: str, start: int) -> Iterator[_Remote]:
    if not url.startswith(("http://", "https://")):
        import blobfile  # here, as it takes a fifth of a second, and few files are on a blob store

        context = blobfile.create_context(retry_limit=5, connect_timeout=10, log_callback=lambda message: None)
        try:
            size = context.stat(url).size
            with context.BlobFile(url, "rb") as file:
                yield _Remote(file, 0, size)
        except blobfile.Error as error:
            raise OSError(str(error) or type(error).__name__) from error
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
        md5 = next((base64.b64decode(value).hex() for name in _MD5 if (value := response.headers.get(name))), None)
        yield _Remote(response, begin, None if length is None else begin + int(length), md5)


def remote_size(url: str) -> int | None:
    """Return the size of a remote file in bytes; None if the server does not state it.

    Args:
        url: An http(s)://, gs:// or az:// address.

    Raises:
        OSError: If the server cannot be reached or refuses.
    """
    try:
        with _open(without_digest(url), 0) as remote:
            return remote.size
    except OSError as error:
        raise OSError(f"{without_digest(url)} cannot be reached: {error}") from error
