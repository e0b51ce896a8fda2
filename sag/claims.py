"""Claims, which let any number of processes share work. All that they need in common is a folder."""

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
    """A claim of another process, as this process sees it.

    Attributes:
        content: The content of the claim.
        since: When it last changed, by this process's clock, in seconds.
    """

    content: bytes
    since: float


class Claims:
    """Pieces of work in a folder, shared by any number of processes. Each process takes pieces that are left.

    A claim is a small file next to the piece. Its holder rewrites it while it works. Claims only save work: two processes that
    make the same piece write the same bytes. A claim is void if its process has ended (which is seen at once on the same
    machine), or if it has not changed for `patience` seconds. Only this process's clock is used.

    Args:
        folder: The folder of the pieces.
        within: The subfolder of the pieces and claims, or "". A claim is named as its piece, with ".claim" added.
        process: This process.
        patience: Seconds after which an unchanged claim is void.
        poll: Seconds between two looks at the folder while this process waits.

    Attributes:
        done: How many pieces were finished when the last one was taken.
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
        """Yield pieces to make now, until files of all these names are in the folder.

        A piece is released when the next one is requested.

        Args:
            pieces: Names of the pieces.
            finished: Whether the pieces are not needed any more, since they were joined and removed.
            wait: Whether to wait while other processes hold all remaining pieces, until they finish or die.
        """
        start = self._process.rank % max(1, len(pieces))
        turn = [*pieces[start :: self._process.world], *reversed(pieces)]  # this process's share, then the rest backwards
        try:
            while True:
                files = self._folder.names(self._within)
                left = [piece for piece in dict.fromkeys(turn) if piece not in files]
                self.done = len(pieces) - len(left)
                if not left or finished():  # in this order, since pieces are removed after they were joined
                    return
                piece = next((piece for piece in left if self._claim(piece, files)), None)
                if piece is not None:
                    if piece not in self._folder.names(self._within):  # it may have been finished meanwhile
                        yield piece
                    self._release()
                elif wait:
                    time.sleep(self._poll)
                else:
                    return
        finally:
            self._release()

    def beat(self) -> None:
        """Show that the current piece is still being made. Call this often."""
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
    """Identify this process among those of all machines: host name, process id, start time, and boot of the machine."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "machine": _machine()}


def _machine() -> str:
    """Return a text that is equal for processes that see each other's process ids; "" if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process of this machine was started; "" if it is not running."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if state[0] in "ZX" else state[19]  # Z, X: it has ended, but its parent has not read its exit code
    except (OSError, IndexError):
        return ""


def is_claim(folder: Folder, name: str, *, dead: bool = False) -> bool:
    """Return whether a file is a claim.

    Args:
        folder: The folder of the file.
        name: Name of the file.
        dead: Whether the claim counts only if its process is known to have ended.
    """
    try:
        claim = json.loads(folder.read(name))
        known = {"machine", "pid", "started", "beat"} <= set(claim)
    except (OSError, ValueError, TypeError):
        return False
    return name.endswith(".claim") and known and (_ended(claim) or not dead)


def _dead(content: bytes) -> bool:
    """Return whether a claim's process is known to have ended. It is not known if the claim cannot be read."""
    try:
        return _ended(json.loads(content))
    except (ValueError, KeyError, TypeError):
        return False


def _ended(claim: Mapping[str, Any]) -> bool:
    same_machine = claim["machine"] == _machine() != ""
    return bool(same_machine and _started(claim["pid"]) != claim["started"])
