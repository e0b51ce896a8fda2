"""Pictures that show what a network in training has learnt."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sag.data import picture
from sag.data.tensors import dequantise, quantise
from sag.diffusion import DDIM, AutoencoderLike, Denoiser, GaussianDiffusion, sample
from sag.noise import SampleNoise
from sag.training.loop import Trainer

GRID = 64  # images in a picture


@dataclass(frozen=True)
class Pictures:
    """Draws a grid of samples after each checkpoint, with the slowest average of the weights: `saved` of `train`.

    Args:
        diffusion: The diffusion of the network.
        null_label: The class that means "no class", which is not drawn.
        size: (height, width) of the images; None is the network's own.
        steps: The number of DDIM steps.
        autoencoder: What turns latents into images, if the network denoises latents.

    Raises:
        ValueError: If there are no steps.
    """

    diffusion: GaussianDiffusion
    null_label: int | None = None
    size: tuple[int, int] | None = None
    steps: int = 25
    autoencoder: AutoencoderLike | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"grid_steps must be at least 1, or 0 to draw no pictures, got {self.steps}")

    def __call__(self, trainer: Trainer) -> None:
        """Write the picture next to the checkpoint.

        Args:
            trainer: The training.

        Raises:
            ValueError: If a file that is not of this run has the picture's name.
        """
        network = _averaged(trainer)
        # A constant stride leaves out the last steps, which are noise for all other schedules than flows
        steps = self.steps if self.diffusion.schedule.variances is None else f"ddim{self.steps}"
        denoiser = Denoiser(network, self.diffusion, self.null_label, self.autoencoder).respace(steps)
        shape = (network.in_channels, *denoiser.sample_size(self.size))
        noise = SampleNoise(0, range(GRID), shape, trainer.device)
        labels = None
        if network.num_classes is not None:
            labels = torch.arange(GRID, device=trainer.device) % (network.num_classes - (self.null_label is not None))
        *_, last = sample(denoiser, DDIM(steps), noise.initial(), denoiser.condition(labels), noise=noise.step)
        _write(trainer, denoiser.decode(last.x))


def reconstructions(trainer: Trainer) -> None:
    """Draw images, each above its reconstruction by an autoencoder in training: `saved` of `train`.

    Args:
        trainer: The training.

    Raises:
        ValueError: If a file that is not of this run has the picture's name.
    """
    images = dequantise(trainer.data.take(np.arange(min(GRID, len(trainer.data)))), trainer.device)
    _write(trainer, torch.cat([images, _averaged(trainer)(images).images], dim=2))


def _averaged(trainer: Trainer) -> Any:
    """Return the network of a training with the slowest average of its weights, in eval mode."""
    network = copy.deepcopy(trainer.network)
    network.load_state_dict(trainer.averaged(max(trainer.ema)))
    return network.eval().requires_grad_(False)


def _write(trainer: Trainer, images: Tensor) -> None:
    """Write images (N, C, H, W) in [-1, 1] as one picture next to the checkpoint."""
    with trainer.writer(f"grid{trainer.step:06d}.png") as file:
        Image.fromarray(picture(quantise(images))).save(file, "PNG")
