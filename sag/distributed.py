"""Several processes at one task: who they are, who does what, and when to stop. They meet in a folder and need nothing else."""

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sag.storage import Folder

REQUEUE = 75  # the exit code that asks for the same command again: EX_TEMPFAIL of sysexits.h
_VARIABLES = (  # rank, world size, rank on this host; in the order in which they are looked for
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH and Intel MPI
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # of a step that srun started; SLURM_NTASKS is the job's
    ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
)


@dataclass(frozen=True)
class Process:
    """One process among `world` others: 0 <= rank < world; local_rank counts on its host and chooses the GPU."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def current(cls) -> "Process":
        """As torchrun, mpiexec or srun started it; a plain process is alone, as is one in a job of SLURM without srun.

        Raises:
            ValueError: a launcher's variables that are no numbers, are incomplete, or contradict each other.
        """
        for rank, world, local_rank in _VARIABLES:
            given = {rank, world} & set(os.environ)
            if len(given) == 2:
                process = cls(_number(rank), _number(world), _number(local_rank) if local_rank in os.environ else 0)
                if process.rank >= process.world:
                    raise ValueError(f"{rank}={process.rank} and {world}={process.world} contradict each other")
                return process
            if given and rank != "SLURM_PROCID":  # which SLURM sets in batch scripts as well
                (lacking,) = {rank, world} - given
                raise ValueError(f"{given.pop()} is set, but {lacking} is not; set both as a launcher does, or neither")
        return cls()

    @property
    def main(self) -> bool:
        """Whether this is the process that reports and writes the result."""
        return self.rank == 0


def _number(variable: str) -> int:
    text = os.environ[variable]
    if not text.isdecimal():
        raise ValueError(f"{variable} must be a whole number of 0 or more, as a launcher sets it, got {text!r}")
    return int(text)


def set_meeting_place(process: Process) -> None:
    """Set MASTER_ADDR and MASTER_PORT, which torch.distributed reads, where the launcher has set none.

    Under srun they are the first host of the step and a port that follows from job and step; under mpiexec, a free port of
    the first process's host, of which MPI tells the others.

    Args:
        process: this process.

    Raises:
        ValueError: there is no way to find them.
    """
    if {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        return
    if os.environ.get("SLURM_STEP_NUM_TASKS") == str(process.world):
        host, port = _first_host_of_step(), 10000 + (31 * _number("SLURM_JOB_ID") + _number("SLURM_STEP_ID")) % 20000
    elif {"PMI_RANK", "OMPI_COMM_WORLD_RANK"} & set(os.environ):
        host, port = _first_host_of_mpi(process)
    else:
        raise ValueError(f"{process.world} processes need a place to meet: set MASTER_ADDR and MASTER_PORT for all of them")
    os.environ.setdefault("MASTER_ADDR", host)
    os.environ.setdefault("MASTER_PORT", str(port))


def _first_host_of_step() -> str:
    if os.environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")  # such as gpu[001-004,7]-a,other
    name = re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).partition(",")[0]
    with contextlib.suppress(OSError):
        socket.getaddrinfo(name, None)
        return name
    command = ["scontrol", "show", "node", name]
    with contextlib.suppress(OSError):  # a node's name need not be its host's; scontrol may be missing in a container
        address = re.search(r"NodeAddr=(\S+)", subprocess.run(command, check=False, capture_output=True, text=True).stdout)
        if address:
            return address[1]
    raise ValueError(
        f"SLURM's first node of this step ({name or 'SLURM_STEP_NODELIST is not set'}) has no address here; set MASTER_ADDR "
        "and MASTER_PORT for all processes"
    )


def _first_host_of_mpi(process: Process) -> tuple[str, int]:
    from mpi4py import MPI  # here, as it starts MPI and needs its library

    if MPI.COMM_WORLD.size != process.world:
        raise ValueError(
            f"the launcher started {process.world} processes, but MPI here knows of {MPI.COMM_WORLD.size}: they are of "
            "different kinds; set MASTER_ADDR and MASTER_PORT for all processes"
        )
    found = None
    if process.main:
        with socket.socket() as probe:
            probe.bind(("", 0))
            found = socket.gethostname(), probe.getsockname()[1]
    return MPI.COMM_WORLD.bcast(found)


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


class Stop:
    """While it is entered, SIGTERM and SIGUSR1 (SLURM's warning) do not end the process, but have `check` do so.

    A handler that is there already, such as submitit's which requeues the job, is called by `check` first.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def _ask(self, number: int, frame: object) -> None:
        self._asked = signal.Signals(number)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise SystemExit with the code REQUEUE if a signal came."""
        if self._asked is not None:
            before = self._before[self._asked]
            print(f"{self._asked.name}: the shard in hand is written; the same command continues", file=sys.stderr, flush=True)
            if callable(before):
                before(self._asked, None)
            sys.exit(REQUEUE)


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
