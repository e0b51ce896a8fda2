"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def atomic(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Give a file that appears under `path` when the block ends well, and not at all otherwise.

    Args:
        path: Where the file appears.
        replace: Whether it replaces a file that is there.

    Raises:
        FileExistsError: `replace` is false and a file is there; if several processes try at once, one of them succeeds.
        OSError: the file cannot be written; if the disk is full, the message names the file.
    """
    # the name is new each time: another process, or the leftover of a killed one, never has the same
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            watched = _Watched(file)
            try:
                yield watched  # type: ignore[misc]  # it has all that a BinaryIO has
                file.flush()
                os.fsync(file.fileno())
            except Exception:
                if watched.error is None:
                    raise
                raise watched.error from None  # torch.save and zipfile hide the error of the disk behind their own
        if replace:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        full = OSError(f"No space left on device for {path}; make room, then the same command continues")
        full.errno = error.errno
        raise full from error
    finally:
        temporary.unlink(missing_ok=True)


class _Watched:
    """A file that remembers the first error of a write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(path, "xb") as file:  # the file system has no hard links: still one succeeds, but not atomically
            file.write(source.read_bytes())
