"""Several processes that share a task: their ranks, where they meet, and signals that stop them."""

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass

logger = logging.getLogger(__name__)
REQUEUE = 75  # the exit code that asks to run the same command again: EX_TEMPFAIL of sysexits.h
_VARIABLES = (  # rank, world size, rank on this host; in this order of priority
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH and Intel MPI
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # a step of srun; SLURM_NTASKS belongs to the job
    ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
)


@dataclass(frozen=True)
class Process:
    """One of several processes.

    Args:
        rank: Number of this process, in [0, world).
        world: Number of processes.
        local_rank: Number of this process on its host. It chooses the GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def current(cls) -> "Process":
        """Return this process, as torchrun, mpiexec, srun or submitit started it.

        Without a launcher, also in a SLURM job without srun, it is the only process.

        Raises:
            ValueError: If a launcher's variables are not numbers, are incomplete, or contradict each other.
        """
        for rank, world, local_rank in _VARIABLES:
            given = {rank, world} & set(os.environ)
            if len(given) == 2:
                process = cls(_number(rank), _number(world), _number(local_rank) if local_rank in os.environ else 0)
                if process.rank >= process.world:
                    raise ValueError(f"{rank}={process.rank} and {world}={process.world} contradict each other")
                return process
            if given and rank != "SLURM_PROCID":  # SLURM sets it in batch scripts as well
                (lacking,) = {rank, world} - given
                raise ValueError(f"{given.pop()} is set, but {lacking} is not; set both as a launcher does, or neither")
        return cls()

    @property
    def main(self) -> bool:
        """Whether this process reports and writes the result."""
        return self.rank == 0


def _number(variable: str) -> int:
    text = os.environ[variable]
    if not text.isdecimal():
        raise ValueError(f"{variable} must be a whole number of 0 or more, as a launcher sets it, got {text!r}")
    return int(text)


def set_meeting_place(process: Process) -> None:
    """Set MASTER_ADDR and MASTER_PORT, which torch.distributed reads, unless the launcher has set them.

    Under srun they are the first host of the step, and a port computed from the job and the step. Under mpiexec, the first
    process chooses a free port of its host and tells the others by MPI.

    Args:
        process: This process.

    Raises:
        ValueError: If they cannot be determined.
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
    with contextlib.suppress(OSError):  # the name of a node can differ from its host name; a container may lack scontrol
        address = re.search(r"NodeAddr=(\S+)", subprocess.run(command, check=False, capture_output=True, text=True).stdout)
        if address:
            return address[1]
    raise ValueError(
        f"SLURM's first node of this step ({name or 'SLURM_STEP_NODELIST is not set'}) has no address here; set MASTER_ADDR "
        "and MASTER_PORT for all processes"
    )


def _first_host_of_mpi(process: Process) -> tuple[str, int]:
    from mpi4py import MPI  # imported here since it starts MPI and needs its library

    if MPI.COMM_WORLD.size != process.world:
        raise ValueError(
            f"the launcher started {process.world} processes, but mpi4py sees {MPI.COMM_WORLD.size}, so the two use different "
            "MPI libraries; set MASTER_ADDR and MASTER_PORT for all processes"
        )
    found = ("", 0)
    if process.main:
        with socket.socket() as probe:
            probe.bind(found)
            found = socket.gethostname(), probe.getsockname()[1]
    host, port = MPI.COMM_WORLD.bcast(found)
    return host, port


class Stop:
    """A context in which SIGTERM and SIGUSR1 (SLURM's warning) end the process only at the next `check`.

    `check` first calls the handler that was set before, such as submitit's, which requeues the job.
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
        """Exit if a signal came.

        Raises:
            SystemExit: With the code `REQUEUE`.
        """
        if self._asked is not None:
            before = self._before[self._asked]
            logger.warning("%s: the shard in hand is written; the same command continues", self._asked.name)
            if callable(before):
                before(self._asked, None)
            sys.exit(REQUEUE)
