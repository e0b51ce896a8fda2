"""The resize of TensorFlow 1, with which the Inception network was trained and is used."""

import torch
from torch import Tensor


def resize_tensorflow1(x: Tensor, height: int, width: int) -> Tensor:
    """Resize images bilinearly, bit-equal to TensorFlow 1.

    Position 0 of the output is position 0 of the input, there is no antialiasing, and all arithmetic is in float32.

    Args:
        x: Images, (N, C, H, W) float32.
        height: The new height.
        width: The new width.

    Returns:
        (N, C, height, width) float32.
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
