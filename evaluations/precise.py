"""Computation in true float32."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def float32_products() -> Iterator[None]:
    """Switch off TF32, reduced-precision products and autocast within the block, and restore the settings after it."""
    with _ieee(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        yield


@contextlib.contextmanager
def _ieee() -> Iterator[None]:
    b = torch.backends
    if hasattr(b.cuda.matmul, "fp32_precision"):  # since torch 2.9; older switches may fail after these were used
        switches = (b.cuda.matmul, b.cudnn.conv, b.mkldnn.matmul, b.mkldnn.conv)  # type: ignore[attr-defined]
        saved = [switch.fp32_precision for switch in switches]
        for switch in switches:
            switch.fp32_precision = "ieee"
        try:
            yield
        finally:
            for switch, value in zip(switches, saved, strict=True):
                switch.fp32_precision = value
    else:
        before = torch.get_float32_matmul_precision(), b.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        b.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            b.cudnn.allow_tf32 = before[1]
