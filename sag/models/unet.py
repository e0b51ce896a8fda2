"""The UNet of ADM and IDDPM (arXiv:2105.05233, section 3; arXiv:2102.09672). Published weights load with strict=True.

A tensor goes down through `input_blocks`, through `middle_block`, and up through `output_blocks`. Each block has at most one
attention, which callers address by the block's name: "input.7", "middle" or "output.2".
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from sag.flags import Flags, read_unet_flags
from sag.models.attention import Attend, Attention, AttentionBlock, AttentionLayer, check_layers
from sag.models.layers import Downsample, GroupNorm32, ResBlock, Upsample, time_mlp, timestep_embedding, zero


class UNetOutput(NamedTuple):
    """The output of a UNet.

    Attributes:
        sample: (N, out_channels, H, W) float32.
        attention: The captured attentions, by layer name.
    """

    sample: Tensor
    attention: dict[str, Attention]


def memory_format(dtype: torch.dtype) -> torch.memory_format:
    """Return the memory layout for a precision: channels last for float16 and bfloat16, contiguous for float32.

    Half-precision kernels are faster with channels last. The CPU's group norm is slow there, and computes the variance as
    E[x^2] - E[x]^2, which is 1000 times less exact. `GroupNorm32` therefore uses the contiguous layout, and so does float32
    everywhere.
    """
    return torch.contiguous_format if dtype == torch.float32 else torch.channels_last


def set_body_dtype(blocks: Sequence[nn.Module], dtype: torch.dtype) -> None:
    """Convert the convolutions of blocks to a dtype, attention projections included. Everything else stays in float32."""
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype).to(memory_format=memory_format(dtype))
            elif isinstance(module, nn.Conv1d):
                module.to(dtype)


class Trunk(nn.Module):
    """The part that the UNet and the classifier share: time embedding, input blocks and middle block.

    It is a base class only. See `UNet` for its arguments.

    Attributes:
        attention_layers: The attention layers, by name.
        width: Channels after the middle block.
        skips: Channels after each input block.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[float],
        dropout: float,
        num_heads: int,
        num_head_channels: int | None,
        use_scale_shift_norm: bool,
        resblock_updown: bool,
        use_new_attention_order: bool,
    ) -> None:
        super().__init__()
        lowest = image_size / 2 ** (len(channel_mult) - 1)
        if lowest != int(lowest):
            raise ValueError(
                f"image_size {image_size} cannot be halved {len(channel_mult) - 1} times, "
                f"as the {len(channel_mult)} entries of channel_mult {tuple(channel_mult)} ask for"
            )
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.attention_resolutions = frozenset(attention_resolutions)
        self.num_head_channels = num_head_channels
        self.new_order = use_new_attention_order
        self.attention_layers: dict[str, AttentionLayer] = {}
        self.time_embed = time_mlp(model_channels)
        self._dropout = dropout
        self._scale_shift = use_scale_shift_norm

        width = int(channel_mult[0] * model_channels)
        resolution = image_size
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(in_channels, width, 3, padding=1)])])
        self.skips = [width]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                out = int(mult * model_channels)
                block: list[nn.Module] = [self._resblock(width, out)]
                block += self._attention(f"input.{len(self.input_blocks)}", out, num_heads, resolution)
                self.input_blocks.append(nn.ModuleList(block))
                width = out
                self.skips.append(width)
            if level < len(channel_mult) - 1:
                down = self._resblock(width, width, "down") if resblock_updown else Downsample(width)
                self.input_blocks.append(nn.ModuleList([down]))
                self.skips.append(width)
                resolution //= 2
        self.middle_block = nn.ModuleList(
            [
                self._resblock(width, width),
                *self._attention("middle", width, num_heads, resolution, always=True),
                self._resblock(width, width),
            ]
        )
        self.width = width
        self.lowest_resolution = resolution

    def _resblock(self, channels: int, out_channels: int, resample: str | None = None) -> ResBlock:
        return ResBlock(channels, out_channels, 4 * self.model_channels, self._dropout, self._scale_shift, resample)

    def _attention(
        self, name: str, channels: int, num_heads: int, resolution: int, always: bool = False
    ) -> list[AttentionBlock]:
        if not always and resolution not in self.attention_resolutions:
            return []
        heads = num_heads if self.num_head_channels is None else channels // self.num_head_channels
        per_head = self.num_head_channels or channels / heads
        if heads * per_head != channels or channels % heads:
            raise ValueError(f"{channels} channels of layer {name} cannot be split into heads of {per_head:g} channels")
        self.attention_layers[name] = AttentionLayer(resolution, channels, heads, self.new_order)
        return [AttentionBlock(channels, heads, self.new_order)]


def run_block(
    block: nn.Module,
    name: str,
    h: Tensor,
    emb: Tensor,
    capture: Collection[str] = (),
    attend: Mapping[str, Attend] | None = None,
    attention: dict[str, Attention] | None = None,
) -> Tensor:
    """Apply one block to features h (N, C, h, w).

    Args:
        block: A list of layers.
        name: The block's name.
        h: (N, C, h, w).
        emb: Time embeddings, (N, emb_channels).
        capture: Names of the blocks whose attention is put into `attention`.
        attend: Replacements for attentions, by block name.
        attention: Receives the captured attention.

    Returns:
        The features after the block.
    """
    for layer in block.children():
        if isinstance(layer, ResBlock):
            h = layer(h, emb)
        elif isinstance(layer, AttentionBlock):
            h, captured = layer(h, attend.get(name) if attend else None)
            if attention is not None and name in capture:
                attention[name] = captured
        else:
            h = layer(h)
    return h


def check_labels(y: Tensor | None, num_classes: int | None) -> None:
    """Check that a class-conditional network is given labels, and another one is not.

    Raises:
        ValueError: If labels are missing or not expected.
    """
    if (y is None) != (num_classes is None):
        raise ValueError(
            "this network is unconditional and takes no labels y"
            if num_classes is None
            else f"this network is class-conditional and needs labels y in [0, {num_classes})"
        )


class UNet(Trunk):
    """The denoising network of ADM and IDDPM, whose attention can be read and replaced.

    Args:
        image_size: Height and width in pixels that `attention_resolutions` refers to. Inputs may have other sizes.
        in_channels: Channels of the input.
        model_channels: Base width, which `channel_mult` multiplies.
        out_channels: Channels of the output: those of the image, or twice as many if the variance is learned.
        num_res_blocks: Residual blocks per level.
        attention_resolutions: Heights in pixels of the feature maps that have attention, such as (32, 16, 8).
        channel_mult: One factor of the base width per level; fractions are allowed.
        num_classes: Rows of the label table, including a null class; None for an unconditional network.
        dropout: Dropout probability.
        num_heads: Heads per attention.
        num_heads_upsample: Heads per attention in the output blocks; None for `num_heads`.
        num_head_channels: Channels per attention head. If set, it replaces the numbers of heads.
        use_scale_shift_norm: See `ResBlock`.
        resblock_updown: Whether residual blocks change the resolution, instead of `Upsample` and `Downsample`.
        use_new_attention_order: See `AttentionLayer.new_order`.

    Raises:
        ValueError: If the image size cannot be halved often enough, or channels cannot be split into heads.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[float],
        num_classes: int | None = None,
        dropout: float = 0.0,
        num_heads: int = 4,
        num_heads_upsample: int | None = None,
        num_head_channels: int | None = None,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__(
            image_size=image_size,
            in_channels=in_channels,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            channel_mult=channel_mult,
            dropout=dropout,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
        )
        self.out_channels = out_channels
        self.num_classes = num_classes
        if num_classes is not None:
            rows = torch.randn(num_classes, 4 * model_channels)  # without rows, nn.Embedding imports the compiler on "meta"
            self.label_emb = nn.Embedding.from_pretrained(rows, freeze=False)

        heads_up = num_heads if num_heads_upsample is None else num_heads_upsample
        width, resolution, skips = self.width, self.lowest_resolution, list(self.skips)
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for index in range(num_res_blocks + 1):
                out = int(mult * model_channels)
                block: list[nn.Module] = [self._resblock(width + skips.pop(), out)]
                block += self._attention(f"output.{len(self.output_blocks)}", out, heads_up, resolution)
                width = out
                if level > 0 and index == num_res_blocks:
                    block.append(self._resblock(width, width, "up") if resblock_updown else Upsample(width))
                    resolution *= 2
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))
        zero(self.out[2])
        self.set_precision(torch.float32)

    @classmethod
    def from_flags(cls, flags: Flags) -> "UNet":
        """Build a network from the flags of guided-diffusion or improved-diffusion.

        Args:
            flags: Values by flag name. Missing flags take the defaults of those programs.

        Raises:
            ValueError: If a flag is unknown, a value has the wrong type, or the constructor rejects the values.
        """
        return cls(**read_unet_flags(flags, issubclass(cls, UpsamplingUNet)))

    @property
    def image_channels(self) -> int:
        """Channels of the images this network denoises."""
        return self.in_channels

    def set_precision(self, dtype: torch.dtype) -> None:
        """Run the convolutions and attentions in `dtype`. Norms, softmax, embeddings and the output stay in float32."""
        self.dtype = dtype
        set_body_dtype([self.input_blocks, self.middle_block, self.output_blocks], dtype)
        set_body_dtype([self.out], torch.float32)

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
        """Predict from noisy images.

        Args:
            x: (N, C, H, W) float32, images in [-1, 1] plus noise. H and W are divisible by 2 ** (levels - 1).
            tau: (N,) training steps, any real dtype, already rescaled if the network was trained with rescaled steps.
            y: (N,) int64 labels in [0, num_classes), for a class-conditional network only.
            capture: Names of the attention layers to return in `UNetOutput.attention`.
            attend: Replacements for attentions, by layer name.

        Raises:
            ValueError: If a layer name is unknown, labels are missing or not expected, or the levels do not divide the size.
        """
        check_layers([*capture, *(attend or ())], self.attention_layers)
        check_labels(y, self.num_classes)
        factor = self.image_size // self.lowest_resolution
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"height and width must be divisible by {factor} for this network, got {x.shape[2]}x{x.shape[3]}")

        emb = self.time_embed(timestep_embedding(tau, self.model_channels))  # (N, 4 model_channels)
        if y is not None:
            emb = emb + self.label_emb(y)
        attention: dict[str, Attention] = {}
        h = x.to(self.dtype, memory_format=memory_format(self.dtype))  # (N, C, H, W)
        skips = []
        for i, block in enumerate(self.input_blocks):
            h = run_block(block, f"input.{i}", h, emb, capture, attend, attention)
            skips.append(h)
        h = run_block(self.middle_block, "middle", h, emb, capture, attend, attention)
        for i, block in enumerate(self.output_blocks):
            h = torch.cat([h, skips.pop()], dim=1)  # (N, C + C_skip, h, w)
            h = run_block(block, f"output.{i}", h, emb, capture, attend, attention)
        h = h.to(torch.float32, memory_format=torch.contiguous_format)
        return UNetOutput(self.out(h), attention)  # (N, out_channels, H, W)


class UpsamplingUNet(UNet):
    """A UNet that also sees a low-resolution image, enlarged and concatenated with x (ADM's upsamplers).

    `in_channels` counts both images, so it is twice the number of channels of one.
    """

    @property
    @override
    def image_channels(self) -> int:
        return self.in_channels // 2

    @override
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        tau: Tensor,
        y: Tensor | None = None,
        *,
        low_res: Tensor,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
    ) -> UNetOutput:
        """Predict from noisy images and their low-resolution versions.

        Args:
            x: See `UNet.forward`.
            tau: See `UNet.forward`.
            y: See `UNet.forward`.
            low_res: (N, C, h, w) in [-1, 1], enlarged bilinearly to the size of x.
            capture: See `UNet.forward`.
            attend: See `UNet.forward`.
        """
        enlarged = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, enlarged], dim=1), tau, y, capture=capture, attend=attend)
