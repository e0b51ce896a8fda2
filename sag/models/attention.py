"""Self-attention of the UNet, with its queries, keys and values open to the caller.

What an attention map is taken from, and what may replace an attention, is an argument of `forward`; there are no hooks.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sag.models.layers import GroupNorm32, zero


@dataclass(frozen=True)
class AttentionLayer:
    """What `attention_layers` tells of one layer: resolution at the network's image size, channels, heads and qkv order.

    `new_order` is guided-diffusion's use_new_attention_order: channels laid out [q,k,v][head] instead of [head][q,k,v].
    """

    resolution: int
    channels: int
    heads: int
    new_order: bool


def check_layers(names: Collection[str], layers: Mapping[str, AttentionLayer]) -> None:
    """Raise a ValueError that lists `layers` if one of `names` is not among them."""
    unknown = [name for name in names if name not in layers]
    if unknown:
        known = ", ".join(f"{name} ({layer.resolution}x{layer.resolution})" for name, layer in layers.items())
        raise ValueError(f"unknown attention layer {', '.join(map(repr, unknown))}; this network has: {known}")


class Attention(NamedTuple):
    """Queries, keys, values of a captured layer, each (N, heads, h * w, D) in the body's dtype, and its map size (h, w)."""

    q: Tensor
    k: Tensor
    v: Tensor
    size: tuple[int, int]


Attend = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]
"""A replacement for the attention of a layer: f(q, k, v, (h, w)) -> (N, heads, h * w, D)."""


def split_heads(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Split projected features into queries, keys and values.

    qkv: (N, T, 3 C); returns three (N, heads, T, C / heads). `new_order`: see `AttentionLayer`.
    """
    n, tokens, width = qkv.shape
    head_channels = width // (3 * heads)
    if new_order:
        parts = qkv.view(n, tokens, 3, heads, head_channels).permute(2, 0, 3, 1, 4)
    else:
        parts = qkv.view(n, tokens, heads, 3, head_channels).permute(3, 0, 2, 1, 4)
    q, k, v = parts.unbind(0)  # (N, heads, T, D) each
    return q, k, v


class AttentionBlock(nn.Module):
    """Residual self-attention over the positions of a feature map (arXiv:2105.05233, section 3)."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)  # a 1x1 convolution by name and shape, applied as a linear map
        self.proj_out = nn.Conv1d(channels, channels, 1)
        zero(self.proj_out)

    def forward(self, x: Tensor, attend: Attend | None = None) -> tuple[Tensor, Attention]:
        """x: (N, C, h, w) -> the same shape, and what the attention was computed from."""
        n, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (N, T, C)
        qkv = F.linear(tokens, self.qkv.weight.squeeze(-1), self.qkv.bias)  # (N, T, 3 C)
        q, k, v = split_heads(qkv, self.heads, self.new_order)
        size = (height, width)
        mixed = F.scaled_dot_product_attention(q, k, v) if attend is None else attend(q, k, v, size)  # (N, heads, T, D)
        joined = mixed.transpose(1, 2).reshape(n, height * width, channels)  # (N, T, C)
        out = F.linear(joined, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + out.transpose(1, 2).reshape(x.shape), Attention(q, k, v, size)


class AttentionPool2d(nn.Module):
    """Attention pooling of a square feature map with its mean as the query, CLIP's way (arXiv:2103.00020, section 2.4).

    x: (N, C, size, size) -> (N, out_channels).
    """

    def __init__(self, size: int, channels: int, head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        positions = x.flatten(2)  # (N, C, T)
        tokens = torch.cat([positions.mean(dim=2, keepdim=True), positions], dim=2)  # (N, C, 1 + T)
        qkv = self.qkv_proj(tokens + self.positional_embedding.to(x.dtype)).transpose(1, 2)  # (N, 1 + T, 3 C)
        q, k, v = split_heads(qkv, self.heads, new_order=True)
        pooled = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # (N, heads, 1, D)
        return self.c_proj(pooled.flatten(1)[:, :, None])[:, :, 0]
