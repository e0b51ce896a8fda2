"""The convolutional building blocks shared by the UNet and the classifier (arXiv:2105.05233, section 3).

Attribute names are the published state-dict names. Convolutions follow the dtype of their input (the body's precision);
norms and the time embedding stay in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm32(nn.GroupNorm):
    """Group normalisation with 32 groups, computed in float32 and returned in the dtype of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x.float()).to(x.dtype)
        # The CPU's kernel takes any dtype beside float32 weights and computes in float32; over channels last it takes up to ten
        # times as long as over the plain layout
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        return super().forward(x.contiguous()).to(memory_format=layout)


def zero(layer: nn.Module) -> None:
    """Let training begin with this layer's output zero, so that the block around it begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def timestep_embedding(tau: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding of the training step, as ADM computes it.

    tau: (N,), any real dtype; returns (N, channels) float32: cosines, then sines, then a zero if channels is odd.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=tau.device))
    angles = tau.float()[:, None] * frequencies[None]  # (N, half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, channels % 2))


def time_mlp(model_channels: int) -> nn.Sequential:
    """The two linear layers behind the sinusoidal embedding: (N, C) -> (N, 4 C)."""
    return nn.Sequential(
        nn.Linear(model_channels, 4 * model_channels), nn.SiLU(), nn.Linear(4 * model_channels, 4 * model_channels)
    )


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by two, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    """A 3x3 convolution with stride two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """A residual block conditioned on the time embedding, optionally changing the resolution by two.

    `resample` is "up", "down" or None. With `use_scale_shift_norm` the embedding scales and shifts the second norm
    (arXiv:2102.09672, section 3); otherwise it is added to the features.
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

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h = conv(self._resampled(silu(norm(x))))  # (N, C', h', w')
        shift_or_scale = self.emb_layers(emb).to(h.dtype)[:, :, None, None]  # (N, C' or 2 C', 1, 1)
        if self.use_scale_shift_norm:
            scale, shift = shift_or_scale.chunk(2, dim=1)
            h = torch.addcmul(shift, self.out_layers[0](h), 1 + scale)
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + shift_or_scale)
        return self.skip_connection(self._resampled(x)) + h
