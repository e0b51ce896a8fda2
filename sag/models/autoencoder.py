"""The KL autoencoder of latent diffusion (arXiv:2112.10752, section 3.1), with the names of diffusers' AutoencoderKL."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from sag.models.layers import GroupNorm32, Upsample
from sag.models.unet import memory_format

AT_ONCE = 2**20  # pixels in a slice of a batch; the largest feature map of sd-vae-ft-ema takes 1 GiB then
EPS = 1e-6  # of the group norms
LOG_VARIANCES = (-30.0, 20.0)  # the range of the posterior's log-variance, as in the reference program


class AutoencoderOutput(NamedTuple):
    """What the training of an autoencoder compares.

    Attributes:
        images: The reconstructions, (N, C, H, W) float32.
        mean: Mean of the posterior, (N, latent_channels, h, w) float32, not scaled.
        log_variance: Log-variance of the posterior, in the shape of `mean`.
    """

    images: Tensor
    mean: Tensor
    log_variance: Tensor


class _ResBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm32(channels, groups, EPS)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm32(out_channels, groups, EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class _AttentionBlock(nn.Module):
    """Self-attention with a single head over the positions of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm32(channels, groups, EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    @override
    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (N, 1, T, C)
        mixed = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        out: Tensor = self.to_out[0](mixed[:, 0])  # (N, T, C)
        return x + out.transpose(1, 2).reshape(x.shape)


class _Downsample(nn.Module):
    """A 3x3 convolution with stride two that pads below and on the right only: (N, C, h, w) -> (N, C, h / 2, w / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class _Level(nn.Module):
    """The residual blocks of a resolution, and the step to the next one, if there is one."""

    def __init__(self, channels: int, out_channels: int, count: int, groups: int, resample: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_ResBlock(out_channels if i else channels, out_channels, groups) for i in range(count))
        self.downsamplers = nn.ModuleList([_Downsample(out_channels)] if resample == "down" else [])
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if resample == "up" else [])

    @override
    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class _MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([_AttentionBlock(channels, groups)])
        self.resnets = nn.ModuleList(_ResBlock(channels, channels, groups) for _ in range(2))

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return out


class _Encoder(nn.Module):
    """(N, in_channels, H, W) -> (N, out_channels, H / factor, W / factor), where factor is 2 ** (levels - 1)."""

    def __init__(self, in_channels: int, out_channels: int, channels: Sequence[int], layers: int, groups: int) -> None:
        super().__init__()
        steps = ["down"] * (len(channels) - 1) + [None]
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _Level(width, out, layers, groups, step)
            for width, out, step in zip([channels[0], *channels], channels, steps, strict=False)
        )
        self.mid_block = _MidBlock(channels[-1], groups)
        self.conv_norm_out = GroupNorm32(channels[-1], groups, EPS)
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down_blocks:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h)).float()))
        return out


class _Decoder(nn.Module):
    """(N, in_channels, h, w) -> (N, out_channels, factor h, factor w), where factor is 2 ** (levels - 1)."""

    def __init__(self, in_channels: int, out_channels: int, channels: Sequence[int], layers: int, groups: int) -> None:
        super().__init__()
        upwards, steps = channels[::-1], ["up"] * (len(channels) - 1) + [None]
        self.conv_in = nn.Conv2d(in_channels, upwards[0], 3, padding=1)
        self.mid_block = _MidBlock(upwards[0], groups)
        self.up_blocks = nn.ModuleList(
            _Level(width, out, layers + 1, groups, step)
            for width, out, step in zip([upwards[0], *upwards], upwards, steps, strict=False)
        )
        self.conv_norm_out = GroupNorm32(channels[0], groups, EPS)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(h).float()))
        return out


class Autoencoder(nn.Module):
    """An autoencoder of images whose latents a diffusion model denoises.

    Files of diffusers' AutoencoderKL load with strict=True. Large batches are encoded and decoded in slices, to save memory.

    Args:
        image_size: Height and width in pixels that it was trained on. Inputs may have other sizes.
        in_channels: Channels of the images.
        latent_channels: Channels of the latents.
        channels: Channels of each level, from full resolution down. Each further level halves the resolution.
        layers: Residual blocks of each level of the encoder; the decoder has one more.
        groups: Groups of the norms, a divisor of all `channels`.
        scale: The latents that a diffusion model sees are scale * (z - shift), where z is the mean of the posterior.
        shift: See `scale`.
        quant_convs: Whether a 1x1 convolution follows the encoder, and another one comes before the decoder.

    Attributes:
        factor: Pixels per latent, on each side.

    Raises:
        ValueError: If there are no levels, the groups do not divide them, the image size cannot be halved often enough, or the
            scale is 0.
    """

    former_names: ClassVar[Mapping[str, str]] = {
        ".query.": ".to_q.",
        ".key.": ".to_k.",
        ".value.": ".to_v.",
        ".proj_attn.": ".to_out.0.",
    }
    """Parts of the names in files of early versions of diffusers, such as sd-vae-ft-ema, and what they are called now."""

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        latent_channels: int = 4,
        channels: Sequence[int] = (128, 256, 512, 512),
        layers: int = 2,
        groups: int = 32,
        scale: float = 0.18215,
        shift: float = 0.0,
        quant_convs: bool = True,
    ) -> None:
        super().__init__()
        if not channels or any(width % groups for width in channels):
            raise ValueError(f"channels must be one or more multiples of groups={groups}, got {list(channels)}")
        if scale == 0:
            raise ValueError("the scale of latents must not be 0")
        self.factor = 2 ** (len(channels) - 1)
        if image_size % self.factor:
            raise ValueError(f"image_size {image_size} must be divisible by {self.factor} with {len(channels)} levels")
        self.image_size, self.in_channels, self.latent_channels = image_size, in_channels, latent_channels
        self.lowest_resolution = image_size // self.factor
        self.scale, self.shift = scale, shift
        self.encoder = _Encoder(in_channels, 2 * latent_channels, channels, layers, groups)
        self.decoder = _Decoder(latent_channels, in_channels, channels, layers, groups)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if quant_convs else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if quant_convs else nn.Identity()
        self.dtype = torch.float32

    def set_precision(self, dtype: torch.dtype) -> None:
        """Run convolutions and attention in `dtype`. Norms, softmax, latents and the last convolutions stay in float32."""
        self.dtype = dtype
        for half in (self.encoder, self.decoder):
            for module in half.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(dtype).to(memory_format=memory_format(dtype))
                elif isinstance(module, nn.Linear):
                    module.to(dtype)
            half.conv_out.to(torch.float32).to(memory_format=torch.contiguous_format)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Gaussian of the latents of images, not scaled (arXiv:1312.6114, section 3).

        Args:
            images: (N, C, H, W) float32 in [-1, 1].

        Returns:
            Its mean and its log-variance, (N, latent_channels, H / factor, W / factor) float32 each.

        Raises:
            ValueError: If the images have other channels, or a size that `factor` does not divide.
        """
        channels, height, width = images.shape[1:]
        if channels != self.in_channels:
            raise ValueError(f"this autoencoder takes images of {self.in_channels} channels, got {channels}")
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"height and width must be divisible by {self.factor} for this autoencoder, got {height}x{width} pixels"
            )
        moments = self.encoder(images.to(self.dtype, memory_format=memory_format(self.dtype)))
        mean, log_variance = self.quant_conv(moments.contiguous()).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def encode(self, images: Tensor) -> Tensor:
        """Turn images into the latents that a diffusion model sees: the scaled means of their posteriors.

        Args:
            images: (N, C, H, W) float32 in [-1, 1].

        Returns:
            (N, latent_channels, H / factor, W / factor) float32.

        Raises:
            ValueError: See `posterior`.
        """
        pixels = images.shape[2] * images.shape[3]
        return self.scale * (_in_slices(lambda part: self.posterior(part)[0], images, pixels) - self.shift)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents as `encode` returns them into images.

        Args:
            latents: (N, latent_channels, h, w) float32.

        Returns:
            (N, C, factor h, factor w) float32, about in [-1, 1].

        Raises:
            ValueError: If the latents have other channels.
        """
        if latents.shape[1] != self.latent_channels:
            raise ValueError(f"this autoencoder has latents of {self.latent_channels} channels, got {latents.shape[1]}")
        pixels = latents.shape[2] * latents.shape[3] * self.factor**2
        return _in_slices(self._images, latents / self.scale + self.shift, pixels)

    def _images(self, z: Tensor) -> Tensor:
        h = self.post_quant_conv(z).to(self.dtype, memory_format=memory_format(self.dtype))
        out: Tensor = self.decoder(h)
        return out.contiguous()

    @override
    def forward(self, images: Tensor, draw: Callable[[Tensor], Tensor] | None = None) -> AutoencoderOutput:
        """Encode and decode images, for training.

        Args:
            images: (N, C, H, W) float32 in [-1, 1].
            draw: Returns standard normal numbers in the shape of a tensor, which choose a point of the posterior, as
                torch.randn_like; None for its mean.

        Raises:
            ValueError: See `posterior`.
        """
        mean, log_variance = self.posterior(images)
        z = mean if draw is None else mean + (0.5 * log_variance).exp() * draw(mean)
        return AutoencoderOutput(self._images(z), mean, log_variance)


def _in_slices(function: Callable[[Tensor], Tensor], x: Tensor, pixels: int) -> Tensor:
    """Apply a function to as many rows of x at once as AT_ONCE allows, with so many pixels in each."""
    return torch.cat([function(part) for part in x.split(max(1, AT_ONCE // pixels))])
