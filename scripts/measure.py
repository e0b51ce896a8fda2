"""Time and memory of a call."""

import contextlib
import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, on the device too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes in use at the peak of a call, weights included; None where the system does not tell (a CPU without Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        call()
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier cases freed does not count
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    call()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
