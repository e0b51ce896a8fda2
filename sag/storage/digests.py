"""What the content of files hashes to, remembered in the cache for as long as they do not change."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from sag.storage.downloads import cache_folder

THREADS = 8
CHUNK = 10_000  # files between two writes to the cache
SETTLED = 2_000_000_000  # ns; a file changed more recently may change again without a later time, so it is not remembered
BLOCK = 1 << 20


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def remembered_digests(paths: Sequence[Path], compute: Callable[[Path], str] = file_digest) -> list[str]:
    """Digests of files, computed in threads unless the cache knows them for the same path, size, times and inode.

    Processes may share the cache. Where it cannot be written, every digest is computed.

    Args:
        paths: The files.
        compute: What makes the digest of one file.

    Returns:
        The digests, in the order of `paths`.

    Raises:
        OSError: A file that cannot be read.
    """
    with _memory() as memory, ThreadPoolExecutor(THREADS) as pool:
        found: list[str] = []
        for first in range(0, len(paths), CHUNK):
            part = paths[first : first + CHUNK]
            names = [compute.__name__.encode() + b" " + os.fsencode(os.path.abspath(path)) for path in part]
            states = list(pool.map(_state, part))
            known = [_recall(memory, name, state) for name, state in zip(names, states, strict=True)]
            missing = [i for i, digest in enumerate(known) if digest is None]
            fresh = dict(zip(missing, pool.map(compute, [part[i] for i in missing]), strict=True))
            now = time.time_ns()
            kept = [
                (names[i], states[i], digest)
                for i, digest in fresh.items()
                if _state(part[i]) == states[i] and _last_change(part[i]) < now - SETTLED
            ]
            _remember(memory, kept)
            found += [fresh[i] if digest is None else digest for i, digest in enumerate(known)]
        return found


def _state(path: Path) -> str:
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def _last_change(path: Path) -> int:
    stat = os.stat(path)
    return max(stat.st_mtime_ns, stat.st_ctime_ns)


@contextlib.contextmanager
def _memory() -> Iterator[sqlite3.Connection | None]:
    connection = None
    with contextlib.suppress(OSError, sqlite3.Error):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / "digests.sqlite", timeout=10)
        connection.execute("CREATE TABLE IF NOT EXISTS digests (file BLOB PRIMARY KEY, state TEXT, digest TEXT)")
    try:
        yield connection
    finally:
        if connection is not None:
            connection.close()


def _recall(memory: sqlite3.Connection | None, name: bytes, state: str) -> str | None:
    if memory is None:
        return None
    with contextlib.suppress(sqlite3.Error):
        row = memory.execute("SELECT digest FROM digests WHERE file = ? AND state = ?", (name, state)).fetchone()
        return None if row is None else str(row[0])
    return None


def _remember(memory: sqlite3.Connection | None, rows: list[tuple[bytes, str, str]]) -> None:
    if memory is not None and rows:
        with contextlib.suppress(sqlite3.Error), memory:
            memory.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
