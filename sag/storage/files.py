"""Files that appear either complete or not at all."""

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
    """Open a file that appears at `path` only when the block ends without an exception.

    Args:
        path: Where the file appears.
        replace: Whether it may replace an existing file.

    Raises:
        FileExistsError: If `replace` is false and the file exists. If several processes try at once, one of them succeeds.
        OSError: If the file cannot be written. If the disk is full, the message names the file.
    """
    # The name is new each time, so it differs from the names of other processes and of files that killed processes left
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            watched = _Watched(file)
            try:
                yield watched  # type: ignore[misc]  # it has all methods of a BinaryIO
                file.flush()
                os.fsync(file.fileno())
            except Exception:
                if watched.error is None:
                    raise
                raise watched.error from None  # torch.save and zipfile replace the disk's error by their own
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


def check_new(path: Path, suffix: str) -> None:
    """Check that a new file may have this name.

    Args:
        path: The file.
        suffix: How its name must end.

    Raises:
        ValueError: If the name ends differently, or the file exists.
    """
    if path.suffix != suffix:
        raise ValueError(f"out={path} must end in {suffix}")
    if path.exists():
        raise ValueError(f"{path} is there already; give another out, or remove it")


class _Watched:
    """A file that remembers the first write error."""

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
        with open(path, "xb") as file:  # without hard links, still only one process succeeds, but the file is not atomic
            file.write(source.read_bytes())
