"""Conversion between stored levels and the tensors of networks."""

import numpy as np
import torch
from torch import Tensor

from sag.data.levels import BITS, Images, highest_level


def quantise(x: Tensor, bits: int = 8) -> Images:
    """Convert images to levels. 8 bits are truncated as in ADM, (x + 1) * 127.5; 16 bits are rounded.

    A single grey channel in 8 bits is repeated to three channels, since ADM's files and all evaluators have three.

    Args:
        x: Images, (N, C, H, W) in [-1, 1].
        bits: 8 or 16.

    Returns:
        Levels, (N, H, W, C) uint8 or uint16.

    Raises:
        ValueError: If `bits` is neither 8 nor 16.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be 8 or 16, got {bits}")
    if bits == 16:
        levels = ((x + 1) * 32767.5).round().clamp(0, 65535).int().permute(0, 2, 3, 1)
        return levels.cpu().numpy().astype(np.uint16)
    levels = ((x + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1)
    return levels.expand(-1, -1, -1, 3 if x.shape[1] == 1 else -1).contiguous().cpu().numpy()


def dequantise(images: Images, device: torch.device | str = "cpu") -> Tensor:
    """Convert levels (N, H, W, C) to float32 images (N, C, H, W) in [-1, 1]."""
    levels = images if images.dtype == np.uint8 else images.astype(np.int32)
    return torch.from_numpy(levels).to(device).permute(0, 3, 1, 2).float() / (highest_level(images) / 2) - 1
