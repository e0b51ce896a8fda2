"""What is minimised: the diffusion's hybrid loss, and the cross-entropy of classifiers, noisy or not.

An objective takes a network and a batch, and returns one loss per image. All that is random in it comes from torch's default
generator, which the loop seeds for every step.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sag.diffusion import GaussianDiffusion
from sag.training.timesteps import TimestepSampler, Uniform

Network = Any
"""A network as the loop runs it: compiled, or wrapped for several processes."""


class Objective(ABC):
    """A loss. `timesteps` is the sampler it learns from, or None."""

    timesteps: TimestepSampler | None = None

    @abstractmethod
    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Losses (n,) of images x_0 (n, C, H, W) in [-1, 1] with labels y (n,); and parts (n,) to report."""

    def last_losses(self) -> tuple[Tensor, Tensor] | None:
        """Steps (n,) and unweighted losses (n,) of the last call, which `timesteps` learns from; None where there are none."""
        return None

    def check(self, labels: int | None) -> None:
        """Raise a ValueError if the data, which has `labels` classes or None, cannot serve."""


class DiffusionLoss(Objective):
    """L_simple, and with a learned variance L_simple + 0.001 L_vlb, whose mean is not trained (arXiv:2102.09672, Eq. 16).

    num_classes: of the network, None for an unconditional one. null_label: the one of them that stands for "no class";
    label_dropout: how often it replaces the label (arXiv:2207.12598). snr_range: None for L_simple; (low, high) weighs the
    squared error of x_0 by the signal-to-noise ratio alpha_bar / (1 - alpha_bar), at least low (arXiv:2202.00512, section 4)
    and at most high (arXiv:2303.09556, section 3.4).
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
            self._mse_weight = {  # times how fast x_0 changes with the output, squared
                "x_0": of_x0,
                "eps": of_x0 / snr,
                "v": of_x0 * noise**2,
                "flow": of_x0 * (noise / (signal + noise)) ** 2,
            }[diffusion.prediction]

    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Objective`; reports mse and, with a learned variance, vlb (bits per dimension)."""
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

    def last_losses(self) -> tuple[Tensor, Tensor]:
        """See `Objective.last_losses`."""
        return self._last

    def check(self, labels: int | None) -> None:
        """See `Objective.check`."""
        if self.num_classes is not None and labels is None:
            raise ValueError("a class-conditional model needs data with labels, and this data has none")
        if self.num_classes is not None and labels is not None:
            classes = self.num_classes - (self.null_label is not None)
            if labels > classes:
                raise ValueError(f"the data has labels up to {labels - 1}, but the model has {classes} classes")


def variational_bound(
    d: GaussianDiffusion, x_0: Tensor, x_t: Tensor, t: Tensor, predicted: Tensor, log_variance: Tensor
) -> Tensor:
    """One term of the variational bound, in bits per dimension, (n,): the KL divergence to the true posterior; at t = 0 the
    negative log-likelihood of x_0 in 256 grey levels (arXiv:2006.11239, Eq. 5 and section 3.3).

    predicted: the clean image that the network predicts, (n, C, H, W), not clamped, as the reference program has it.
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
    """Log-probability of grey levels x in [-1, 1] under a Gaussian integrated over each level, the outer two to infinity.

    The normal distribution function is the reference program's approximation by a hyperbolic tangent.
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

    def check(self, labels: int | None) -> None:
        """See `Objective.check`."""
        if labels is None:
            raise ValueError("a classifier needs data with labels, and this data has none")
        if labels > self.num_classes:
            raise ValueError(f"the data has labels up to {labels - 1}, but the classifier has {self.num_classes} classes")

    def _losses(self, logits: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert y is not None
        return F.cross_entropy(logits.float(), y, reduction="none"), {"accuracy": (logits.argmax(1) == y).float()}


class NoisyClassification(_Labelled):
    """Cross-entropy of a classifier on x_t, t uniform (arXiv:2105.05233, section 4.1); reports accuracy."""

    def __init__(self, diffusion: GaussianDiffusion, num_classes: int) -> None:
        self.diffusion, self.num_classes = diffusion, num_classes

    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Objective`."""
        t = Uniform(len(self.diffusion.schedule)).draw(len(x_0))[0].to(x_0.device)
        x_t = self.diffusion.q_sample(x_0, t, torch.randn_like(x_0))
        tau = torch.from_numpy(self.diffusion.schedule.tau).to(x_0.device)[t]
        return self._losses(network(x_t, tau), y)


class Classification(_Labelled):
    """Cross-entropy of a network on clean images with the values 0 to 255, as feature networks see them; reports accuracy."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, network: Network, x_0: Tensor, y: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Objective`."""
        return self._losses(network((x_0 + 1) * 127.5), y)
