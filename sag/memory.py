"""Memory of this process: kept between steps, and measured."""

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def keep_memory() -> None:
    """Make glibc keep freed buffers. Returning them to the system and getting them back costs a CPU up to half its time."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no buffer has a mapping of its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: 2 GiB may lie idle


def peak_memory(call: Callable[[], object], device: "torch.device") -> int | None:
    """Return the bytes in use at the peak of a call, weights included.

    Args:
        call: What is measured.
        device: Where it computes. On a GPU its memory is measured, otherwise the memory of this process.

    Returns:
        The bytes; None if the system does not report them (a CPU without Linux).
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        call()
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed does not count
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    call()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
