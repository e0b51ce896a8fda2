"""A network, its diffusion and its conditions as one function: (x_t, t) -> what is predicted of the noise."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sag.diffusion.condition import Condition, check_condition
from sag.diffusion.gaussian import GaussianDiffusion
from sag.models import Attend, Attention, AttentionLayer, UNet, UpsamplingUNet


class Remembered(NamedTuple):
    """What a technique left in the memory of a trajectory, and the step t at which it did."""

    t: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Memory:
    """What one step of a trajectory leaves for the next. It belongs to the trajectory, never to a module.

    Args:
        own: What each technique of a guided denoiser remembers.
        within: The memory of the denoiser within a guided one, apart for each question that it is asked.
    """

    own: Mapping[Any, Remembered] = field(default_factory=dict)
    within: Mapping[Any, "Memory"] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x_t.

    Args:
        eps: (N, C, H, W) float32, the noise.
        log_variance: (N, C, H, W) float32, the logarithm of the step's variance; None if the denoiser says nothing of it.
        score: The gradient of log p(y | x_t) times its scale, or None; samplers use it by ADM's algorithms 1 and 2.
        attention: What was captured, by layer.
        x_0: (N, C, H, W) float32, the clean image, not clamped, if `GaussianDiffusion.carries_x0`; otherwise None, and x_t and
            eps imply it.
        memory: What the next step of the same trajectory is to be given.
    """

    eps: Tensor
    log_variance: Tensor | None = None
    score: Tensor | None = None
    attention: Mapping[str, Attention] = field(default_factory=dict)
    x_0: Tensor | None = None
    memory: Memory = field(default_factory=Memory)


class DenoiserLike(Protocol):
    """What samplers and guidance need: a `Denoiser`, guided or not, or any class with these attributes and methods."""

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion, respaced."""

    @property
    def attention_layers(self) -> Mapping[str, AttentionLayer]:
        """What may be captured, by name."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is denoised, at the network's own size."""

    @property
    def num_classes(self) -> int | None:
        """How many labels there are, the null one included; None if the denoiser takes no labels."""

    def respace(self, steps: int | str) -> "DenoiserLike":
        """Return the same denoiser on fewer steps (see `Schedule.respace`)."""

    def decode(self, x_0: Tensor) -> Tensor:
        """Return the images (N, C, H, W) in [-1, 1] that x_0 stands for: x_0 itself, unless it is latent."""

    def __call__(
        self,
        x_t: Tensor,
        t: int,
        condition: Condition | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
        memory: Memory | None = None,
    ) -> Prediction:
        """Predict from x_t at index t (see `Denoiser.__call__`)."""


@dataclass(frozen=True)
class Denoiser:
    """The unguided denoiser.

    Args:
        network: The network, in the precision it was set to.
        diffusion: The diffusion it was trained for, respaced or not.
        null_label: The class that means "no class", of a network trained with label dropout.
    """

    network: UNet
    diffusion: GaussianDiffusion
    null_label: int | None = None

    def condition(self, labels: Tensor | None = None, low_res: Tensor | None = None) -> Condition:
        """Return what this network is told of samples, with its null class.

        Args:
            labels: (N,) int64.
            low_res: (N, C, h, w) in [-1, 1], for an upsampling network.
        """
        return Condition(labels, low_res=low_res, null_label=self.null_label)

    @property
    def attention_layers(self) -> Mapping[str, AttentionLayer]:
        """The network's attention layers by name."""
        return self.network.attention_layers

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's images."""
        return self.network.image_channels, self.network.image_size, self.network.image_size

    @property
    def num_classes(self) -> int | None:
        """Rows of the network's label table."""
        return self.network.num_classes

    def respace(self, steps: int | str) -> "Denoiser":
        """Return the same denoiser on fewer steps (see `Schedule.respace`)."""
        diffusion = self.diffusion.respace(steps)
        return self if diffusion is self.diffusion else replace(self, diffusion=diffusion)

    def decode(self, x_0: Tensor) -> Tensor:
        """Return x_0 itself: the network denoises pixels."""
        return x_0

    def __call__(
        self,
        x_t: Tensor,
        t: int,
        condition: Condition | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
        memory: Memory | None = None,
    ) -> Prediction:
        """Predict the noise in x_t.

        Args:
            x_t: (N, C, H, W) float32.
            t: The index in the diffusion's schedule.
            condition: What the network is told. An unconditional network is not told the labels, which a classifier beside it
                may need.
            capture: See `UNet.forward`.
            attend: See `UNet.forward`.
            memory: What the step before left; a denoiser without techniques leaves nothing.

        Raises:
            ValueError: If the condition does not fit the network or the number of images, or the network's output the variance.
        """
        check_condition(condition, len(x_t))
        given = condition or Condition()
        if given.text is not None:
            raise ValueError("this network takes labels at most, and the condition has text")
        if (given.low_res is not None) != isinstance(self.network, UpsamplingUNet):
            wanted = "no low_res" if given.low_res is not None else "low_res, the images to enlarge"
            raise ValueError(f"this network needs a condition with {wanted}")
        diffusion = self.diffusion
        tau = torch.full((len(x_t),), diffusion.schedule.tau[t], dtype=torch.float32, device=x_t.device)
        low_res = {} if given.low_res is None else {"low_res": given.low_res}
        labels = None if self.network.num_classes is None else given.labels
        output, attention = self.network(x_t, tau, labels, capture=capture, attend=attend, **low_res)
        output, of_variance = diffusion.split(output, x_t.shape[1])
        log_variance = None
        if of_variance is not None:
            log_variance = diffusion.learned_log_variance(of_variance, t)
        elif diffusion.variance is not None:
            log_variance = diffusion.fixed_log_variance(t, output)
        eps, x_0 = diffusion.resolve(output, x_t, t)
        return Prediction(eps, log_variance, attention=attention, x_0=x_0 if diffusion.carries_x0 else None)
