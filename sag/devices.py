"""Devices and the precisions that they compute in."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sag.distributed import Process

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str, precision: str = "float32") -> torch.device:
    """Return a device by name, and switch off TF32, which is less exact than float32.

    Args:
        name: "cpu", "cuda", "cuda:N", or "auto" for the GPU of the local rank, if there is one.
        precision: The precision of the computation: "float32", "bfloat16" or "float16".

    Returns:
        The device.

    Raises:
        ValueError: If the device is unknown or does not exist, or the precision is unknown or is float16 on a CPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    gpu = torch.cuda.is_available()
    try:
        own = f"cuda:{Process.current().local_rank % torch.cuda.device_count()}" if gpu else "cpu"
        device = torch.device(own if name == "auto" else name)
    except (RuntimeError, TypeError):
        raise ValueError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not gpu or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"device {name!r} was requested, but this machine has {torch.cuda.device_count()} GPUs; use device=cpu"
        )
    if precision == "float16" and device.type == "cpu":
        raise ValueError("precision=float16 needs a GPU; on a CPU use precision=bfloat16 or precision=float32")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def set_up(network: Any, device: torch.device, precision: str, compiled: bool) -> None:
    """Move a network to its device and precision, and compile it if asked.

    Args:
        network: A module with `set_precision`, such as `UNet`.
        device: Where it goes.
        precision: "float32", "bfloat16" or "float16".
        compiled: Whether it is compiled at its first call.
    """
    network.set_precision(PRECISIONS[precision])
    network.to(device)
    if compiled:
        network.compile()


def device_name(device: torch.device) -> str:
    """Return the model name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes, with what it started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
