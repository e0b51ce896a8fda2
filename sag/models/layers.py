"""The convolutional blocks that the UNet and the classifier share (arXiv:2105.05233, section 3).

Attributes are named as in the published state dicts. Convolutions run in the precision of the blocks, which is the dtype of
their input; norms and the time embedding stay in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


class GroupNorm32(nn.GroupNorm):
    """Group normalisation. It computes in float32 and returns the dtype of its input.

    Args:
        channels: Number of channels, a multiple of `groups`.
        groups: Number of groups.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__(groups, channels, eps)

    @override
    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x.float()).to(x.dtype)
        # The CPU kernel accepts any input dtype with float32 weights and computes in float32. With channels last it is up to
        # ten times slower than with the contiguous layout.
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        return super().forward(x.contiguous()).to(memory_format=layout)


def zero(layer: nn.Module) -> None:
    """Set all parameters of a layer to zero, so that the residual block around it starts training as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def timestep_embedding(tau: Tensor, channels: int) -> Tensor:
    """Embed the training step in sines and cosines, as ADM does.

    Args:
        tau: (N,), any real dtype.
        channels: Size of the embedding.

    Returns:
        (N, channels) float32: the cosines, the sines, and a zero if `channels` is odd.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=tau.device))
    angles = tau.float()[:, None] * frequencies[None]  # (N, half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, channels % 2))


def time_mlp(model_channels: int) -> nn.Sequential:
    """Return the two linear layers that follow the sinusoidal embedding: (N, model_channels) -> (N, 4 model_channels)."""
    return nn.Sequential(
        nn.Linear(model_channels, 4 * model_channels), nn.SiLU(), nn.Linear(4 * model_channels, 4 * model_channels)
    )


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by two, then a 3x3 convolution: (N, C, h, w) -> (N, C, 2 h, 2 w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class Downsample(nn.Module):
    """A 3x3 convolution with stride two: (N, C, h, w) -> (N, C, h / 2, w / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class ResBlock(nn.Module):
    """A residual block that is told the time embedding and can double or halve the resolution.

    `forward` takes features (N, channels, h, w) and embeddings (N, emb_channels), and returns (N, out_channels, h', w').

    Args:
        channels: Number of input channels.
        out_channels: Number of output channels.
        emb_channels: Size of the time embedding.
        dropout: Dropout probability.
        use_scale_shift_norm: Whether the embedding scales and shifts the second norm (arXiv:2102.09672, section 3) instead of
            being added to the features.
        resample: "up", "down", or None to keep the resolution.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_channels: int,
        dropout: float,
        use_scale_shift_norm: bool,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resample = resample
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, (2 if use_scale_shift_norm else 1) * out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        zero(self.out_layers[3])
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    @override
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h: Tensor = conv(self._resampled(silu(norm(x))))  # (N, C', h', w')
        shift_or_scale = self.emb_layers(emb).to(h.dtype)[:, :, None, None]  # (N, C' or 2 C', 1, 1)
        if self.use_scale_shift_norm:
            scale, shift = shift_or_scale.chunk(2, dim=1)
            h = torch.addcmul(shift, self.out_layers[0](h), 1 + scale)
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + shift_or_scale)
        skip: Tensor = self.skip_connection(self._resampled(x))
        return skip + h
