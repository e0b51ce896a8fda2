"""The resize of TensorFlow 1 that the Inception graph was trained and measured with."""

import torch
from torch import Tensor


def resize_tensorflow1(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, corners at pixel centres (0, 0), no antialiasing; coordinates and arithmetic in float32, bit for bit.

    x: (N, C, H, W) float32. Returns (N, C, height, width).
    """
    x = _along(x, width, 3)  # (N, C, H, width)
    return _along(x, height, 2)  # (N, C, height, width)


def _along(x: Tensor, size: int, dim: int) -> Tensor:
    scale = torch.tensor(x.shape[dim], dtype=torch.float32) / torch.tensor(size, dtype=torch.float32)
    position = torch.arange(size, dtype=torch.float32) * scale
    low = position.long()
    high = (low + 1).clamp_max(x.shape[dim] - 1)
    weight = (position - low).to(x.device).view([-1 if d == dim else 1 for d in range(4)])
    below, above = (x.index_select(dim, index.to(x.device)) for index in (low, high))
    return below + (above - below) * weight
