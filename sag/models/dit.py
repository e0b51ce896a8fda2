"""The diffusion transformer DiT (arXiv:2212.09748), and SiT (arXiv:2401.08740). Published weights load with strict=True.

Images, or latents, become a row of tokens, one for each patch. Callers address the attention of a block as "block.0", "block.1"
and so on.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from sag.models.attention import Attend, Attention, AttentionLayer, check_layers, split_heads
from sag.models.layers import timestep_embedding, zero
from sag.models.unet import UNetOutput, check_labels

FREQUENCIES = 256  # size of the time's embedding in sines and cosines
TABLE_ERROR = 1e-2  # by which a stored table of positions may differ from the exact one, for bfloat16


def position_embedding(height: int, width: int, size: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Embed the positions of a grid in sines and cosines (arXiv:2212.09748, section 3.2).

    The first half of the channels tells the column, the second half the row. A grid of another size than the trained one is
    spread over the same range, as in diffusers.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        size: Rows and columns of the grid that the network was trained on.
        channels: Size of the embedding, a multiple of 4.
        device: Where the embedding is made.

    Returns:
        (height * width, channels) float32.
    """
    rows, columns = (torch.arange(n, dtype=torch.float64, device=device) * size / n for n in (height, width))
    exponents = torch.arange(channels // 4, dtype=torch.float64, device=device) / (channels // 4)
    frequencies = torch.exp(-math.log(10000) * exponents)

    def embedded(places: Tensor) -> Tensor:
        angles = places[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    of_row, of_column = embedded(rows)[:, None], embedded(columns)[None]
    grid = (height, width, channels // 2)
    return torch.cat([of_column.expand(grid), of_row.expand(grid)], dim=2).flatten(0, 1).float()


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise tokens (N, T, D) without parameters, then scale and shift them by what the time and the class say."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    @override
    def forward(self, x: Tensor, size: tuple[int, int], attend: Attend | None) -> tuple[Tensor, Attention]:
        q, k, v = split_heads(self.qkv(x), self.heads, new_order=True)
        mixed = F.scaled_dot_product_attention(q, k, v) if attend is None else attend(q, k, v, size)  # (N, heads, T, D)
        return self.proj(mixed.transpose(1, 2).flatten(2)), Attention(q, k, v, size)


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class _Block(nn.Module):
    """A block of the transformer with adaLN-Zero (arXiv:2212.09748, Fig. 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _SelfAttention(width, heads)
        self.mlp = _MLP(width)
        self.adaLN_modulation = _modulation(width, 6)

    @override
    def forward(
        self, x: Tensor, emb: Tensor, size: tuple[int, int], dtype: torch.dtype, attend: Attend | None
    ) -> tuple[Tensor, Attention]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(emb)[:, None].chunk(6, dim=2)  # (N, 1, D)
        mixed, captured = self.attn(_modulate(x, shift, scale).to(dtype), size, attend)
        x = x + gate * mixed
        return x + mlp_gate * self.mlp(_modulate(x, mlp_shift, mlp_scale).to(dtype)), captured


class _FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = _modulation(width, 2)

    @override
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(emb)[:, None].chunk(2, dim=2)
        out: Tensor = self.linear(_modulate(x, shift, scale))
        return out


class DiT(nn.Module):
    """The diffusion transformer, whose attention can be read and replaced.

    A new network is initialised as in the paper, so that each block begins as the identity and the output is zero.

    Args:
        image_size: Height and width of the images or latents that it was trained on. Inputs may have other sizes.
        in_channels: Channels of the input.
        out_channels: Channels of the output: those of the input, or twice as many if the variance is learned.
        num_classes: Rows of the label table, including a null class; None for an unconditional network.
        patch: Height and width of a patch.
        width: Channels of a token.
        depth: Number of blocks.
        heads: Heads per attention.

    Raises:
        ValueError: If patches do not divide the image, heads do not divide the width, or 4 does not.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        out_channels: int,
        num_classes: int | None = None,
        patch: int = 2,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image_size {image_size} cannot be split into patches of {patch}")
        if width % heads or width % 4:
            raise ValueError(f"width {width} must be divisible by heads={heads}, and by 4 for the position embedding")
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.num_classes, self.patch = num_classes, patch
        self.lowest_resolution = image_size // patch
        layer = AttentionLayer(self.lowest_resolution, width, heads, new_order=True)
        self.attention_layers = {f"block.{i}": layer for i in range(depth)}
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(in_channels, width, patch, stride=patch)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))}
        )
        if num_classes is not None:
            rows = torch.empty(num_classes, width)  # without rows, nn.Embedding imports the compiler on "meta"
            self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding.from_pretrained(rows, freeze=False)})
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.final_layer = _FinalLayer(width, out_channels * patch**2)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", torch.empty(1, self.lowest_resolution**2, width))
        self._positions_known = True
        if not self.pos_embed.is_meta:  # arithmetic there imports the compiler
            self._initialise()
        self.set_precision(torch.float32)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        embeddings = [self.t_embedder["mlp"][0], self.t_embedder["mlp"][2]]  # type: ignore[index]
        if self.num_classes is not None:
            embeddings.append(self.y_embedder["embedding_table"])
        for layer in embeddings:
            nn.init.normal_(layer.weight, std=0.02)
        for block in self.blocks:
            zero(block.adaLN_modulation)  # type: ignore[arg-type]
        zero(self.final_layer)
        self.pos_embed.copy_(self._exact_positions(self.lowest_resolution, self.lowest_resolution))

    def _exact_positions(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        channels = next(iter(self.attention_layers.values())).channels
        return position_embedding(height, width, self.lowest_resolution, channels, device)[None]

    @property
    def image_channels(self) -> int:
        """Channels of the images or latents that this network denoises."""
        return self.in_channels

    def set_precision(self, dtype: torch.dtype) -> None:
        """Run attention and MLPs in `dtype`. Tokens between them, norms, softmax, embeddings and output stay in float32."""
        self.dtype = dtype
        for module in self.blocks.modules():
            if isinstance(module, _SelfAttention | _MLP):
                module.to(dtype)

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        found = super().load_state_dict(state_dict, strict, assign)
        exact = self._exact_positions(self.lowest_resolution, self.lowest_resolution, self.pos_embed.device)
        self._positions_known = bool((self.pos_embed - exact).abs().max() < TABLE_ERROR)
        return found

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the position embedding of a grid of patches: the stored one where it fits, (1, height * width, D)."""
        if height == width == self.lowest_resolution:
            return self.pos_embed
        if not self._positions_known:
            raise ValueError(
                f"these weights have a position embedding of their own, which is known for {self.image_size}x{self.image_size} "
                f"only, got {height * self.patch}x{width * self.patch}"
            )
        return self._exact_positions(height, width, self.pos_embed.device)

    @override
    def forward(
        self,
        x: Tensor,
        tau: Tensor,
        y: Tensor | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
    ) -> UNetOutput:
        """Predict from noisy images or latents.

        Args:
            x: (N, C, H, W) float32. `patch` divides H and W.
            tau: (N,) training steps, any real dtype.
            y: (N,) int64 labels in [0, num_classes), for a class-conditional network only.
            capture: Names of the attention layers to return in `UNetOutput.attention`.
            attend: Replacements for attentions, by layer name.

        Raises:
            ValueError: If a layer name is unknown, labels are missing or not expected, patches do not divide the size, or the
                positions of another size than the trained one are not known.
        """
        check_layers([*capture, *(attend or ())], self.attention_layers)
        check_labels(y, self.num_classes)
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"height and width must be divisible by {self.patch} for this network, got {x.shape[2]}x{x.shape[3]}"
            )
        size = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        emb = self.t_embedder["mlp"](timestep_embedding(tau, FREQUENCIES))  # (N, D)
        if y is not None:
            emb = emb + self.y_embedder["embedding_table"](y)
        tokens = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self._positions(*size)  # (N, T, D)
        attention: dict[str, Attention] = {}
        for name, block in zip(self.attention_layers, self.blocks, strict=True):
            tokens, captured = block(tokens, emb, size, self.dtype, attend.get(name) if attend else None)
            if name in capture:
                attention[name] = captured
        patches = self.final_layer(tokens, emb).unflatten(2, (self.patch, self.patch, -1)).unflatten(1, size)
        out = patches.permute(0, 5, 1, 3, 2, 4)  # (N, C, h, patch, w, patch)
        return UNetOutput(out.flatten(4, 5).flatten(2, 3), attention)


class SiT(DiT):
    """SiT: the network of DiT, trained to predict the velocity of a straight path between image and noise.

    SiT's program counts time from noise (0) to image (1), and predicts image minus noise. This class has the conventions of
    `Schedule.flow` and prediction "flow": tau is 1 for noise, and the output is noise minus image. The output layer has twice
    as many channels as the image. The second half has no use.

    Args:
        image_size: See `DiT`.
        in_channels: See `DiT`.
        num_classes: See `DiT`.
        patch: See `DiT`.
        width: See `DiT`.
        depth: See `DiT`.
        heads: See `DiT`.

    Raises:
        ValueError: See `DiT`.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        num_classes: int | None = None,
        patch: int = 2,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
    ) -> None:
        super().__init__(
            image_size=image_size,
            in_channels=in_channels,
            out_channels=2 * in_channels,
            num_classes=num_classes,
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
        )

    @override
    def forward(
        self,
        x: Tensor,
        tau: Tensor,
        y: Tensor | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
    ) -> UNetOutput:
        output, attention = super().forward(x, 1 - tau, y, capture=capture, attend=attend)
        return UNetOutput(-output[:, : self.in_channels], attention)
