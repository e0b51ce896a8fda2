"""Training for latent diffusion (arXiv:2112.10752): autoencoders, and diffusion models of their latents."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from sag.data import ImageSource
from sag.data.tensors import dequantise
from sag.models import Autoencoder, image_size
from sag.training.losses import Network, Objective

AT_ONCE = 500  # images that are read together


class Reconstruction(Objective):
    """The loss of a KL autoencoder (arXiv:2112.10752, section 3.1) without its perceptual and adversarial parts.

    It is the absolute error of the images, and the KL divergence of the posterior to the standard normal distribution, both as
    sums over the image divided by its number of values. It reports `error`, without the factor of the other part, and `kl` in
    bits per image.

    Args:
        kl_weight: The factor of the KL divergence. A larger one gives latents that are simpler to model, and images with less
            detail.

    Raises:
        ValueError: If the weight is negative.
    """

    def __init__(self, kl_weight: float = 1e-6) -> None:
        if kl_weight < 0:
            raise ValueError(f"kl_weight must be 0 or more, got {kl_weight}")
        self.kl_weight = kl_weight

    @override
    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        images, mean, log_variance = (value.float() for value in network(x_0, torch.randn_like))
        error = (images - x_0).abs().flatten(1).mean(1)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        return error + self.kl_weight / x_0[0].numel() * kl, {"error": error, "kl": kl / np.log(2)}


class OfLatents(Objective):
    """An objective on the latents of the images.

    Args:
        objective: What is trained on latents, such as a `DiffusionLoss`.
        autoencoder: What encodes the images. It is on the device of the training, and is not trained.
    """

    def __init__(self, objective: Objective, autoencoder: Autoencoder) -> None:
        self.objective, self.autoencoder, self.timesteps = objective, autoencoder, objective.timesteps

    @override
    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        with torch.no_grad(), torch.autocast(x_0.device.type, enabled=False):
            latents = self.autoencoder.encode(x_0)
        return self.objective(network, latents, y)

    @override
    def last_losses(self) -> tuple[Tensor, Tensor] | None:
        return self.objective.last_losses()

    @override
    def check(self, labels: int | None) -> None:
        self.objective.check(labels)

    @override
    def image_shape(self, network: Any, size: Sequence[int] | None = None) -> tuple[int, int, int]:
        channels, expected = self.autoencoder.latent_channels, network.in_channels
        if channels != expected:
            raise ValueError(f"the autoencoder has latents of {channels} channels, but the network takes {expected}")
        factor = self.autoencoder.factor
        height, width = image_size(network, size, factor)
        return factor * height, factor * width, self.autoencoder.in_channels


@torch.no_grad()
def latent_scale(autoencoder: Autoencoder, images: ImageSource, count: int = 10_000) -> float:
    """Return the `scale` that gives latents of images the variance one, as diffusion models expect it.

    Args:
        autoencoder: The autoencoder, on any device. Its own `scale` has no effect.
        images: Images that it was trained on.
        count: The number of images to use, evenly spread over all of them.

    Raises:
        ValueError: If all latents are equal.
    """
    device = next(autoencoder.parameters()).device
    rows = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    number, mean, squares = 0, 0.0, 0.0
    for start in range(0, len(rows), AT_ONCE):
        z = autoencoder.encode(dequantise(images.take(rows[start : start + AT_ONCE]), device)).double() / autoencoder.scale
        number, mean, squares = number + z.numel(), mean + float(z.sum()), squares + float(z.square().sum())
    variance = squares / number - (mean / number) ** 2
    if variance <= 0:
        raise ValueError("the latents of these images are all equal, so no scale gives them the variance one")
    return float(variance**-0.5)
