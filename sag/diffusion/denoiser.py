"""A network, its diffusion and its conditions as one function: (x_t, t) -> what is predicted of the noise."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sag.diffusion.gaussian import GaussianDiffusion
from sag.models import Attend, Attention, AttentionLayer, UNet


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x_t.

    Args:
        eps: (N, C, H, W) float32, the noise.
        log_variance: (N, C, H, W) float32, the logarithm of the step's variance; None if the denoiser says nothing of it.
        score: The gradient of log p(y | x_t) times its scale, or None; samplers use it by ADM's algorithms 1 and 2.
        attention: What was captured, by layer.
        x_0: (N, C, H, W) float32, the clean image, not clamped, where the network predicts a velocity (v or flow); otherwise
            None, and x_t and eps imply it.
    """

    eps: Tensor
    log_variance: Tensor | None = None
    score: Tensor | None = None
    attention: Mapping[str, Attention] = field(default_factory=dict)
    x_0: Tensor | None = None


class DenoiserLike(Protocol):
    """What samplers and guidance need: a `Denoiser`, guided or not.

    null_label: the label that means "no class", where there is one. attention_layers: what may be captured, by name.
    """

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion, respaced."""

    @property
    def null_label(self) -> int | None:
        """The label of no class."""

    @property
    def attention_layers(self) -> Mapping[str, AttentionLayer]:
        """What may be captured."""

    def __call__(
        self,
        x_t: Tensor,
        t: int,
        y: Tensor | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
    ) -> Prediction:
        """Predict from x_t at index t (see `Denoiser.__call__`)."""


@dataclass(frozen=True)
class Denoiser:
    """The unguided denoiser.

    network: in the precision it was set to. diffusion: already respaced. null_label: the class that means "no class" of a
    network trained with label dropout. low_res: (N, C, h, w) in [-1, 1], for an upsampling network only.
    """

    network: UNet
    diffusion: GaussianDiffusion
    null_label: int | None = None
    low_res: Tensor | None = None

    @property
    def attention_layers(self) -> Mapping[str, AttentionLayer]:
        """The network's attention layers by name."""
        return self.network.attention_layers

    def __call__(
        self,
        x_t: Tensor,
        t: int,
        y: Tensor | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
    ) -> Prediction:
        """Predict eps and log-variance of x_t (N, C, H, W) float32 at index t of the diffusion's schedule.

        y: (N,) int64 labels; an unconditional network is not told them (a classifier beside it is).
        capture, attend: see `UNet.forward`.
        """
        diffusion = self.diffusion
        tau = torch.full((len(x_t),), diffusion.schedule.tau[t], dtype=torch.float32, device=x_t.device)
        condition = {} if self.low_res is None else {"low_res": self.low_res}
        labels = None if self.network.num_classes is None else y
        output, attention = self.network(x_t, tau, labels, capture=capture, attend=attend, **condition)
        log_variance = None
        if diffusion.variance == "learned_range":
            output, fraction = output.chunk(2, dim=1)  # (N, C, H, W) each
            log_variance = diffusion.learned_log_variance(fraction, t)
        elif diffusion.variance is not None:
            log_variance = diffusion.fixed_log_variance(t, output)
        eps, x_0 = diffusion.resolve(output, x_t, t)
        return Prediction(eps, log_variance, attention=attention, x_0=x_0 if diffusion.predicts_velocity else None)
