"""Autoencoders of the library diffusers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LibraryAutoencoder:
    """Turns images into latents and back. Latents are scaled as the model's config says.

    Args:
        vae: The library's autoencoder.
    """

    vae: Any

    @property
    def factor(self) -> int:
        """How many pixels high and wide a latent is."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latent_channels(self) -> int:
        """Number of channels of a latent."""
        return int(self.vae.config.latent_channels)

    def encode(self, images: Tensor) -> Tensor:
        """Turn images (N, C, H, W) in [-1, 1] into the means of their latents, (N, c, h, w) of about unit variance."""
        encoded = self.vae.encode(images.to(self.vae.dtype))
        latents = (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents).float()
        scale, shift = self._scale_and_shift(latents)
        scaled: Tensor = (latents - shift) * scale
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (N, c, h, w) into images (N, C, H, W), about in [-1, 1]."""
        scale, shift = self._scale_and_shift(latents)
        images: Tensor = self.vae.decode((latents / scale + shift).to(self.vae.dtype)).sample
        return images.float()

    def _scale_and_shift(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return the factor of latents and what is subtracted first: numbers, or one of each per channel."""
        config = self.vae.config
        scale, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
        means, stds = config.get("latents_mean"), config.get("latents_std")
        if means is None or stds is None:
            return scale, shift
        mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(like) for values in (means, stds))
        return scale / std, mean
