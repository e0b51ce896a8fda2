"""A network, its diffusion and its conditions as one function: (x_t, t, condition) -> predicted noise and variance."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from sag.diffusion.condition import Condition, check_condition
from sag.diffusion.gaussian import GaussianDiffusion
from sag.diffusion.schedule import Schedule
from sag.models import Attend, Attention, AttentionLayer, Network, UpsamplingUNet, image_size


class Remembered(NamedTuple):
    """What a technique stored in the memory of a trajectory.

    Attributes:
        t: The step at which the technique stored it.
        tensors: The tensors, by name.
    """

    t: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Memory:
    """What one step of a trajectory passes to the next. It belongs to the trajectory, never to a module.

    Args:
        own: What each technique of a guided denoiser remembers.
        within: The memories of the inner denoiser of a guided one: a separate memory for each question.
    """

    own: Mapping[Any, Remembered] = field(default_factory=dict)
    within: Mapping[Any, "Memory"] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser predicts from x_t.

    Args:
        eps: The noise, (N, C, H, W) float32.
        log_variance: The logarithm of the step's variance, (N, C, H, W) float32; None if it is not predicted.
        score: The gradient of log p(y | x_t) times its scale, (N, C, H, W) float32, or None. Samplers apply it as in
            arXiv:2105.05233, Alg. 1 and 2.
        attention: The captured attentions, by layer name.
        x_0: The clean image, not clamped, (N, C, H, W) float32, if `GaussianDiffusion.carries_x0`. Otherwise None, since x_0
            follows from x_t and eps.
        memory: What to pass to the next step of the same trajectory.
    """

    eps: Tensor
    log_variance: Tensor | None = None
    score: Tensor | None = None
    attention: Mapping[str, Attention] = field(default_factory=dict)
    x_0: Tensor | None = None
    memory: Memory = field(default_factory=Memory)


class DenoiserLike(Protocol):
    """What samplers and guidance need: a `Denoiser`, a `GuidedDenoiser`, or any class with these attributes and methods."""

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion, on the steps that remain after respacing."""

    @property
    def attention_layers(self) -> Mapping[str, AttentionLayer]:
        """The attention layers that can be captured and replaced, by name."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the samples at the network's own size, before `decode`."""

    @property
    def num_classes(self) -> int | None:
        """Number of labels, including the null label; None if the denoiser takes no labels."""

    def condition(
        self, labels: Tensor | None = None, low_res: Tensor | None = None, texts: Sequence[str] | None = None
    ) -> Condition:
        """Return what the denoiser is told of samples with these labels (N,), small images (N, C, h, w) and N texts."""

    def respace(self, steps: int | str | Schedule) -> "DenoiserLike":
        """Return the same denoiser on fewer steps (see `Schedule.respace`), or on another schedule."""

    def decode(self, x_0: Tensor) -> Tensor:
        """Turn samples into images (N, C, H, W) in [-1, 1]. Only latent samples change."""

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
        """Predict the noise in x_t at step t (see `Denoiser.__call__`)."""


class Model(DenoiserLike, Protocol):
    """What `sag.build` makes of a model's config: a denoiser without guidance that knows which inputs it takes."""

    @property
    def takes_text(self) -> bool:
        """Whether the model is told texts."""

    def sample_size(self, size: Sequence[int] | None = None) -> tuple[int, int]:
        """Return (h, w) of what is denoised for images of (height, width) pixels; None is the model's own size.

        Raises:
            ValueError: If there can be no images of this size.
        """


class AutoencoderLike(Protocol):
    """What a denoiser of latents needs to turn images into latents and back."""

    @property
    def factor(self) -> int:
        """How many pixels high and wide a latent is."""

    def encode(self, images: Tensor) -> Tensor:
        """Turn images (N, C, H, W) in [-1, 1] into latents (N, c, h, w) of about unit variance."""

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (N, c, h, w) into images (N, C, H, W), about in [-1, 1]."""


@dataclass(frozen=True)
class Denoiser:
    """A network with its diffusion, without guidance.

    Args:
        network: The network.
        diffusion: The diffusion that the network was trained for; it may be respaced.
        null_label: The class that means "no class", if the network was trained with label dropout.
        autoencoder: What turns latents into images, if the network denoises latents.
    """

    network: Network
    diffusion: GaussianDiffusion
    null_label: int | None = None
    autoencoder: AutoencoderLike | None = None
    takes_text: ClassVar[bool] = False

    def condition(
        self, labels: Tensor | None = None, low_res: Tensor | None = None, texts: Sequence[str] | None = None
    ) -> Condition:
        """Make a condition that includes this network's null class.

        Args:
            labels: Classes, (N,) int64.
            low_res: Images for an upsampling network, (N, C, h, w) in [-1, 1].
            texts: None, since these networks take no texts.

        Raises:
            ValueError: If there are texts.
        """
        if texts is not None:
            raise ValueError("this model takes no text; leave out prompt and prompts")
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
        """Number of rows of the network's label table; None if the network is unconditional."""
        return self.network.num_classes

    def sample_size(self, size: Sequence[int] | None = None) -> tuple[int, int]:
        """Return (h, w) of what is denoised.

        Args:
            size: (height, width) of the images in pixels; None is the network's own square.

        Raises:
            ValueError: If the autoencoder or the network cannot halve such a size as often as it does.
        """
        return image_size(self.network, size, 1 if self.autoencoder is None else self.autoencoder.factor)

    def respace(self, steps: int | str | Schedule) -> "Denoiser":
        """Return the same denoiser on fewer steps (see `Schedule.respace`), or on another schedule."""
        diffusion = self.diffusion.respace(steps)
        return self if diffusion is self.diffusion else replace(self, diffusion=diffusion)

    def decode(self, x_0: Tensor) -> Tensor:
        """Return the images of latents, or x_0 itself if the network denoises pixels."""
        return x_0 if self.autoencoder is None else self.autoencoder.decode(x_0)

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
            t: The step, an index of the diffusion's schedule.
            condition: What the network is told. An unconditional network ignores labels, which may be meant for a classifier.
            capture: See `UNet.forward`.
            attend: See `UNet.forward`.
            memory: What the previous step passed on. This denoiser neither reads nor changes it.

        Raises:
            ValueError: If the condition does not fit the network or the number of images, or if the network's output does not
                fit the variance.
        """
        check_condition(condition, len(x_t))
        given = condition or Condition()
        if given.text is not None:
            raise ValueError("this network takes no text, but the condition has one")
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
