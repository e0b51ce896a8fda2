"""The lease protocol: how any number of processes share pieces of work in a folder, and need nothing else."""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sag.distributed import Process
from sag.storage import Folder


@dataclass(frozen=True)
class _Watched:
    """A claim of another process as this one saw it: its content, and when (by this one's own clock) it last changed."""

    content: bytes
    since: float


class Claims:
    """Pieces of work in a folder that any number of processes take in turn, each from what is left.

    A claim is a small file beside the piece, which its holder rewrites while it works. It only saves work: two who make one
    piece write the same bytes, so nothing depends on it. A claim is void when its process is dead (seen on the same machine at
    once) or when it has not changed for `patience` seconds of this process's own clock; other machines' clocks are not read.

    done: how many pieces were there when the last one was taken. folder: of the pieces; claims are files in its folder
    `within`, named as the piece with ".claim" behind.
    """

    def __init__(self, folder: Folder, within: str, process: Process, patience: float = 120.0, poll: float = 0.5) -> None:
        self._folder, self._within, self._process = folder, within, process
        self._patience, self._poll = patience, poll
        self.done = 0
        self._beats = 0
        self._last_beat = -math.inf
        self._held: str | None = None
        self._others: dict[str, _Watched] = {}

    def take(self, pieces: Sequence[str], *, finished: Callable[[], bool] = lambda: False, wait: bool = True) -> Iterator[str]:
        """Pieces to make now, until all files of these names are in the folder.

        The piece is released when the next one is asked for. finished: whether the pieces are needed no more, as someone has
        joined and removed them. wait: while others hold all that is left, wait for them to finish or to die; otherwise end.
        """
        start = self._process.rank % max(1, len(pieces))
        turn = [*pieces[start :: self._process.world], *reversed(pieces)]  # the own share first, then the rest from the back
        try:
            while True:
                files = self._folder.names(self._within)
                left = [piece for piece in dict.fromkeys(turn) if piece not in files]
                self.done = len(pieces) - len(left)
                if not left or finished():  # in this order: what was joined is removed after it was joined
                    return
                piece = next((piece for piece in left if self._claim(piece, files)), None)
                if piece is not None:
                    if piece not in self._folder.names(self._within):  # nobody finished it meanwhile
                        yield piece
                    self._release()
                elif wait:
                    time.sleep(self._poll)
                else:
                    return
        finally:
            self._release()

    def beat(self) -> None:
        """Say that the piece is still being worked at; to be called often."""
        if self._held is not None and time.monotonic() - self._last_beat > self._patience / 10:
            self._beats += 1
            self._last_beat = time.monotonic()
            self._folder.write(self._file(self._held), self._content())

    def _file(self, piece: str) -> str:
        return f"{self._within}/{piece}.claim" if self._within else f"{piece}.claim"

    def _content(self) -> bytes:
        return json.dumps({**this_process(), "rank": self._process.rank, "beat": self._beats}).encode()

    def _claim(self, piece: str, files: set[str]) -> bool:
        file = self._file(piece)
        if f"{piece}.claim" in files:
            if not self._void(file):
                return False
            self._folder.write(file, self._content())
        elif not self._folder.create(file, self._content()):
            return False
        self._held, self._last_beat = piece, time.monotonic()
        self._others.pop(file, None)
        return True

    def _void(self, file: str) -> bool:
        try:
            content = self._folder.read(file)
        except FileNotFoundError:
            return True
        if _dead(content):
            return True
        seen = self._others.get(file)
        if seen is None or seen.content != content:
            self._others[file] = _Watched(content, time.monotonic())
            return False
        return time.monotonic() - seen.since > self._patience

    def _release(self) -> None:
        if self._held is not None:
            self._folder.remove(self._file(self._held))
            self._held = None


def this_process() -> dict[str, str | int]:
    """Which process this is, among all of all machines: host name, process, and what tells machines and restarts apart."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "machine": _machine()}


def _machine() -> str:
    """The same for processes that see each other's process numbers, and only for them; "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine was started; "" if there is none that still runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if state[0] in "ZX" else state[19]  # ended, but its parent has not asked for its exit code
    except (OSError, IndexError):
        return ""


def is_claim(folder: Folder, name: str, *, dead: bool = False) -> bool:
    """Tell whether a file is a claim.

    Args:
        folder: Where the file is.
        name: Its name.
        dead: Whether its process must also be known to have ended.
    """
    try:
        claim = json.loads(folder.read(name))
        known = {"machine", "pid", "started", "beat"} <= set(claim)
    except (OSError, ValueError, TypeError):
        return False
    return name.endswith(".claim") and known and (_ended(claim) or not dead)


def _dead(content: bytes) -> bool:
    """Whether a claim's process is known to have ended; of one that cannot be read, nothing is known."""
    try:
        return _ended(json.loads(content))
    except (ValueError, KeyError, TypeError):
        return False


def _ended(claim: Mapping[str, Any]) -> bool:
    same_machine = claim["machine"] == _machine() != ""
    return bool(same_machine and _started(claim["pid"]) != claim["started"])
