"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def atomic(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A file that appears under `path` when the block ends well, and not at all otherwise.

    replace: whether it replaces a file that is there.

    Raises:
        FileExistsError: it may not replace the file that is there; of several who try at once, one succeeds.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(path, "xb") as file:  # the file system has no hard links: still one succeeds, but not atomically
            file.write(source.read_bytes())
