"""Hashes of files, which are kept in the cache until the files change."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from sag.storage.downloads import cache_folder

THREADS = 8
CHUNK = 10_000  # files between two writes to the cache
SETTLED = 2_000_000_000  # ns; a file that changed more recently may change again at the same time, so it is not cached
BLOCK = 1 << 20
WAIT = 10  # seconds to wait for another process that writes


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def remembered_digests(paths: Sequence[Path], compute: Callable[[Path], str] = file_digest) -> list[str]:
    """Return digests of files, from the cache if the path, size, times and inode are unchanged.

    Processes may share the cache. If it cannot be written, all digests are computed.

    Args:
        paths: The files.
        compute: Computes the digest of one file. It is called in threads.

    Returns:
        The digests, in the order of `paths`.

    Raises:
        OSError: If a file cannot be read.
    """
    found: list[str] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(paths), CHUNK):
            part = paths[first : first + CHUNK]
            names = [compute.__name__.encode() + b" " + os.fsencode(os.path.abspath(path)) for path in part]
            states = list(pool.map(_state, part))
            known = _recall(names, states)
            missing = [i for i, digest in enumerate(known) if digest is None]
            fresh = dict(zip(missing, pool.map(compute, [part[i] for i in missing]), strict=True))
            settled = time.time_ns() - SETTLED
            _remember(
                [
                    (names[i], str(states[i]), digest)
                    for i, digest in fresh.items()
                    if _state(part[i]) == states[i] and max(states[i].mtime, states[i].ctime) < settled
                ]
            )
            found += [fresh[i] if digest is None else digest for i, digest in enumerate(known)]
    return found


class _State(NamedTuple):
    size: int
    mtime: int
    ctime: int
    inode: int


def _state(path: Path) -> _State:
    stat = os.stat(path)
    return _State(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def _database() -> Path:
    return cache_folder() / "digests.sqlite"


def _recall(names: Sequence[bytes], states: Sequence[_State]) -> list[str | None]:
    with contextlib.suppress(OSError, sqlite3.Error):
        if _database().exists():
            with contextlib.closing(sqlite3.connect(_database(), timeout=WAIT)) as memory:
                query = "SELECT digest FROM digests WHERE file = ? AND state = ?"
                rows = [memory.execute(query, (n, str(s))).fetchone() for n, s in zip(names, states, strict=True)]
            return [None if row is None else str(row[0]) for row in rows]
    return [None] * len(names)


def _remember(rows: Sequence[tuple[bytes, str, str]]) -> None:
    if not rows:
        return
    with contextlib.suppress(OSError, sqlite3.Error):
        _database().parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(_database(), timeout=WAIT)) as memory, memory:
            memory.execute("CREATE TABLE IF NOT EXISTS digests (file BLOB PRIMARY KEY, state TEXT, digest TEXT)")
            memory.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
