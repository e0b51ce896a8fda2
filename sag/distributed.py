"""Several processes at one task: who they are, and who does what. They meet on disk and never wait for each other."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

_VARIABLES = (  # rank, world size, rank on this host; in the order in which they are looked for
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH and Intel MPI
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Process:
    """One process among `world` others: 0 <= rank < world; local_rank counts on its host and chooses the GPU."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def current(cls) -> "Process":
        """As torchrun, mpiexec or srun started it; a plain process is alone.

        Raises:
            ValueError: a launcher's variables that contradict each other.
        """
        for rank, world, local_rank in _VARIABLES:
            if rank in os.environ and world in os.environ:
                process = cls(int(os.environ[rank]), int(os.environ[world]), int(os.environ.get(local_rank, "0")))
                if not 0 <= process.rank < process.world:
                    raise ValueError(f"{rank}={process.rank} and {world}={process.world} contradict each other")
                return process
        return cls()

    @property
    def main(self) -> bool:
        """Whether this is the process that reports and writes the result."""
        return self.rank == 0

    def shares(self, count: int) -> Iterator[int]:
        """Its own of `count` pieces of work, then, for the main process, all others from the last to the first.

        Whoever takes a piece looks first whether it is done, so that nobody waits and a lost process loses nothing.
        """
        own = range(self.rank, count, self.world)
        yield from own
        if self.main:
            yield from (piece for piece in reversed(range(count)) if piece not in own)
