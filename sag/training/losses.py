"""Objectives: the hybrid loss of diffusion models, and the cross-entropy of classifiers of noisy or clean images.

An objective takes a network and a batch, and returns one loss per image. Its random numbers come from torch's default
generator, which the training loop seeds at every step.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from sag.diffusion import GaussianDiffusion
from sag.models import image_size
from sag.training.timesteps import TimestepSampler, Uniform

Network = Any
"""A network as the training loop runs it. It may be compiled, or wrapped for several processes."""


class Objective(ABC):
    """A loss.

    Attributes:
        timesteps: The sampler of diffusion steps, which learns from the losses; None if there is none.
    """

    timesteps: TimestepSampler | None = None

    @abstractmethod
    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the losses of a batch.

        Args:
            network: The network.
            x_0: Images, (n, C, H, W) in [-1, 1].
            y: Labels, (n,) int64, or None if the data has none.

        Returns:
            The losses, (n,), and further values to report, (n,) each, by name.
        """

    def last_losses(self) -> tuple[Tensor, Tensor] | None:
        """Return the steps (n,) and unweighted losses (n,) of the last call, for `timesteps`; None if it does not learn."""
        return None

    def check(self, labels: int | None) -> None:
        """Check that the data fits this objective.

        Args:
            labels: Number of classes in the data; None if it has no labels.

        Raises:
            ValueError: If it does not.
        """

    def image_shape(self, network: Any, size: Sequence[int] | None = None) -> tuple[int, int, int]:
        """Return (height, width, channels) of the images that a network is trained on.

        Args:
            network: The network, not wrapped.
            size: (height, width) of the images where it is not the network's own square.

        Raises:
            ValueError: If the network cannot have such images.
        """
        return *image_size(network, size), network.in_channels


class DiffusionLoss(Objective):
    """The loss of diffusion models (arXiv:2102.09672, Eq. 16).

    It is L_simple or, with a learned variance, L_simple + 0.001 L_vlb, where L_vlb trains the variance only, not the mean. It
    reports `mse` and, with a learned variance, `vlb` in bits per dimension.

    Args:
        diffusion: The diffusion.
        timesteps: The sampler of diffusion steps; by default uniform.
        num_classes: The network's number of classes, including the null class; None for an unconditional network.
        null_label: The class that means "no class".
        label_dropout: Probability that the null label replaces a label (arXiv:2207.12598).
        snr_range: None for L_simple. (low, high) weights the squared error of x_0 by the signal-to-noise ratio
            alpha_bar / (1 - alpha_bar), at least low (arXiv:2202.00512, section 4) and at most high (arXiv:2303.09556,
            section 3.4).

    Raises:
        ValueError: If there is label dropout without a null label.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        timesteps: TimestepSampler | None = None,
        num_classes: int | None = None,
        null_label: int | None = None,
        label_dropout: float = 0.0,
        snr_range: tuple[float, float] | None = None,
    ) -> None:
        if label_dropout and null_label is None:
            raise ValueError("label_dropout needs a network with a null class: set null_label and one more class")
        self.diffusion, self.num_classes, self.null_label, self.label_dropout = (
            diffusion,
            num_classes,
            null_label,
            label_dropout,
        )
        self.timesteps = timesteps or Uniform(len(diffusion.schedule))
        self._mse_weight = np.ones(len(diffusion.schedule))
        if snr_range is not None:
            snr = diffusion.schedule.alpha_bar / (1 - diffusion.schedule.alpha_bar)
            of_x0 = snr.clip(*snr_range)
            signal, noise = diffusion.schedule.signal, diffusion.schedule.noise
            self._mse_weight = {  # the weight of x_0, times the squared derivative of x_0 by the output
                "x_0": of_x0,
                "eps": of_x0 / snr,
                "v": of_x0 * noise**2,
                "flow": of_x0 * (noise / (signal + noise)) ** 2,
            }[diffusion.prediction]

    @override
    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        d = self.diffusion
        assert self.timesteps is not None
        t, weight = (v.to(x_0.device) for v in self.timesteps.draw(len(x_0)))
        eps = torch.randn_like(x_0)
        x_t = d.q_sample(x_0, t, eps)
        tau = torch.from_numpy(d.schedule.tau).to(x_0.device)[t]
        labels = None if self.num_classes is None else y
        if labels is not None and self.null_label is not None:
            dropped = torch.rand(len(labels), device=labels.device) < self.label_dropout
            labels = labels.masked_fill(dropped, self.null_label)
        output = network(x_t, tau, labels)[0].float()
        prediction, v = d.split(output, x_0.shape[1])
        parts = {"mse": (prediction - d.target(x_0, eps, t)).square().flatten(1).mean(1)}
        losses = torch.from_numpy(self._mse_weight).to(x_0.device, torch.float32)[t] * parts["mse"]
        if v is not None:
            _, predicted = d.resolve(prediction, x_t, t)
            parts["vlb"] = variational_bound(d, x_0, x_t, t, predicted.detach(), d.learned_log_variance(v, t))
            losses = losses + len(d.schedule) / 1000 * parts["vlb"]  # 0.001 of the sum over steps
        self._last = t, losses.detach()
        return losses * weight, parts

    @override
    def last_losses(self) -> tuple[Tensor, Tensor]:
        return self._last

    @override
    def check(self, labels: int | None) -> None:
        if self.num_classes is not None and labels is None:
            raise ValueError("a class-conditional model needs data with labels, and this data has none")
        if self.num_classes is not None and labels is not None:
            classes = self.num_classes - (self.null_label is not None)
            if labels > classes:
                raise ValueError(f"the data has labels up to {labels - 1}, but the model has {classes} classes")


def variational_bound(
    d: GaussianDiffusion, x_0: Tensor, x_t: Tensor, t: Tensor, predicted: Tensor, log_variance: Tensor
) -> Tensor:
    """Compute one term of the variational bound (arXiv:2006.11239, Eq. 5 and section 3.3).

    This is the KL divergence to the true posterior or, at t = 0, the negative log-likelihood of x_0 in 256 grey levels.

    Args:
        d: The diffusion.
        x_0: Images, (n, C, H, W) in [-1, 1].
        x_t: Noisy images, (n, C, H, W).
        t: Their steps, (n,) int64.
        predicted: The predicted clean images, (n, C, H, W), not clamped, as in the reference program.
        log_variance: The predicted log-variance, (n, C, H, W).

    Returns:
        (n,) in bits per dimension.
    """
    mean, true_mean = d.posterior_mean(x_t, t, predicted), d.posterior_mean(x_t, t, x_0)
    table = torch.from_numpy(d.schedule.posterior_log_variance).to(t.device)[t].float()
    true_log_variance = table.view(-1, *[1] * (x_0.dim() - 1))
    kl = 0.5 * (
        log_variance
        - true_log_variance
        - 1
        + (true_log_variance - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
    )
    nll = -discretised_log_likelihood(x_0, mean, 0.5 * log_variance)
    nats = torch.where(t == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1))
    return nats / math.log(2)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Compute the log-probability of grey levels under a Gaussian (arXiv:2006.11239, section 3.3).

    The Gaussian is integrated over each level, and to infinity for the lowest and the highest. As in the reference program, a
    hyperbolic tangent approximates the normal distribution function.

    Args:
        x: Grey levels in [-1, 1], any shape.
        mean: Mean of the Gaussian, in the shape of x.
        log_scale: Logarithm of its standard deviation, in the shape of x.

    Returns:
        Log-probabilities, in the shape of x.
    """
    inverse = (-log_scale).exp()
    above = _normal_cdf((x - mean + 1 / 255) * inverse)
    below = _normal_cdf((x - mean - 1 / 255) * inverse)
    probability = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return probability.clamp_min(1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class _Labelled(Objective):
    num_classes: int

    @override
    def check(self, labels: int | None) -> None:
        if labels is None:
            raise ValueError("a classifier needs data with labels, and this data has none")
        if labels > self.num_classes:
            raise ValueError(f"the data has labels up to {labels - 1}, but the classifier has {self.num_classes} classes")

    def _losses(self, logits: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert y is not None
        return F.cross_entropy(logits.float(), y, reduction="none"), {"accuracy": (logits.argmax(1) == y).float()}


class NoisyClassification(_Labelled):
    """Cross-entropy of a classifier of x_t at uniform steps t (arXiv:2105.05233, section 4.1). It reports `accuracy`.

    Args:
        diffusion: The diffusion that makes x_t.
        num_classes: Number of classes.
    """

    def __init__(self, diffusion: GaussianDiffusion, num_classes: int) -> None:
        self.diffusion, self.num_classes = diffusion, num_classes

    @override
    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        t = Uniform(len(self.diffusion.schedule)).draw(len(x_0))[0].to(x_0.device)
        x_t = self.diffusion.q_sample(x_0, t, torch.randn_like(x_0))
        tau = torch.from_numpy(self.diffusion.schedule.tau).to(x_0.device)[t]
        return self._losses(network(x_t, tau), y)


class Classification(_Labelled):
    """Cross-entropy of a classifier of clean images. It reports `accuracy`.

    The network sees values from 0 to 255, as feature networks do.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    @override
    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self._losses(network((x_0 + 1) * 127.5), y)
