"""Between stored levels and the tensors that networks take."""

import numpy as np
import torch
from torch import Tensor

from sag.data.levels import BITS, Images, highest_level


def quantise(x: Tensor, bits: int = 8) -> Images:
    """Images (N, C, H, W) in [-1, 1] as levels (N, H, W, C): 8 bits truncated as ADM does it, (x + 1) * 127.5; 16 bits rounded.

    One grey channel in 8 bits is repeated to three, which ADM's files and every evaluator have.

    Raises:
        ValueError: bits other than 8 and 16.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be 8 or 16, got {bits}")
    if bits == 16:
        levels = ((x + 1) * 32767.5).round().clamp(0, 65535).int().permute(0, 2, 3, 1)
        return levels.cpu().numpy().astype(np.uint16)
    levels = ((x + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1)
    return levels.expand(-1, -1, -1, 3 if x.shape[1] == 1 else -1).contiguous().cpu().numpy()


def dequantise(images: Images, device: torch.device | str = "cpu") -> Tensor:
    """Levels (N, H, W, C) as float32 images (N, C, H, W) in [-1, 1]."""
    levels = images if images.dtype == np.uint8 else images.astype(np.int32)
    return torch.from_numpy(levels).to(device).permute(0, 3, 1, 2).float() / (highest_level(images) / 2) - 1
