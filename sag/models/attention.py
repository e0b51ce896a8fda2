"""Self-attention of the UNet. The caller can read its queries, keys and values, and can replace it.

Both are arguments of `forward`; there are no hooks.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from sag.models.layers import GroupNorm32, zero


@dataclass(frozen=True)
class AttentionLayer:
    """The shape of one attention layer, as listed in `Trunk.attention_layers`.

    Attributes:
        resolution: Height and width of the feature map when the input has the network's image size.
        channels: Number of channels.
        heads: Number of attention heads.
        new_order: Whether channels are laid out as [q,k,v][head] instead of [head][q,k,v] (guided-diffusion's
            use_new_attention_order).
    """

    resolution: int
    channels: int
    heads: int
    new_order: bool


def check_layers(names: Collection[str], layers: Mapping[str, AttentionLayer]) -> None:
    """Check that all these attention layers exist.

    Args:
        names: The names to check.
        layers: The attention layers of the network, by name.

    Raises:
        ValueError: If a name is unknown. The message lists the layers that exist.
    """
    unknown = [name for name in names if name not in layers]
    if unknown:
        known = ", ".join(f"{name} ({layer.resolution}x{layer.resolution})" for name, layer in layers.items())
        raise ValueError(f"unknown attention layer {', '.join(map(repr, unknown))}; this network has: {known}")


class Attention(NamedTuple):
    """The input of one captured attention.

    Attributes:
        q: Queries, (N, heads, h * w, D), in the dtype of the network's blocks.
        k: Keys, as q.
        v: Values, as q.
        size: Height and width (h, w) of the feature map.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    size: tuple[int, int]


Attend = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]
"""Replaces the attention of a layer: f(q, k, v, (h, w)) -> (N, heads, h * w, D)."""


def split_heads(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Split projected features into queries, keys and values.

    Args:
        qkv: (N, T, 3 C).
        heads: Number of heads, a divisor of C.
        new_order: See `AttentionLayer`.

    Returns:
        Queries, keys and values, each (N, heads, T, C / heads).
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
    """Residual self-attention over the positions of a feature map (arXiv:2105.05233, section 3).

    Args:
        channels: Number of channels.
        heads: Number of heads.
        new_order: See `AttentionLayer`.
    """

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)  # published weights have this shape; it is applied as a linear map
        self.proj_out = nn.Conv1d(channels, channels, 1)
        zero(self.proj_out)

    @override
    def forward(self, x: Tensor, attend: Attend | None = None) -> tuple[Tensor, Attention]:
        """Apply the block.

        Args:
            x: Features, (N, C, h, w).
            attend: Replaces the attention.

        Returns:
            The features after attention, (N, C, h, w), and the queries, keys and values.
        """
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
    """Attention pooling of a square feature map, with its mean as the query, as in CLIP (arXiv:2103.00020, section 2.4).

    `forward` maps (N, channels, size, size) to (N, out_channels).

    Args:
        size: Height and width of the feature map.
        channels: Number of input channels.
        head_channels: Channels per attention head.
        out_channels: Number of output channels.
    """

    def __init__(self, size: int, channels: int, head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        positions = x.flatten(2)  # (N, C, T)
        tokens = torch.cat([positions.mean(dim=2, keepdim=True), positions], dim=2)  # (N, C, 1 + T)
        qkv = self.qkv_proj(tokens + self.positional_embedding.to(x.dtype)).transpose(1, 2)  # (N, 1 + T, 3 C)
        q, k, v = split_heads(qkv, self.heads, new_order=True)
        pooled = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # (N, heads, 1, D)
        out: Tensor = self.c_proj(pooled.flatten(1)[:, :, None])
        return out[:, :, 0]
