"""The Gaussian diffusion's closed forms, without any network (arXiv:2006.11239; arXiv:2102.09672)."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sag.diffusion.schedule import Schedule, Table
from sag.models.flags import Flags, read_diffusion_flags

Index = int | Tensor
"""A step of the (respaced) schedule: one number for all, or (N,) int64, one for each image."""

VARIANCES = ("learned_range", "fixed_small", "fixed_large")
PREDICTIONS = ("eps", "x_0")


@dataclass(frozen=True)
class GaussianDiffusion:
    """A schedule, and what the network's output means.

    variance: "learned_range" (the second half of the output interpolates between the two bounds), "fixed_small" (the
    posterior's), or "fixed_large" (beta). prediction: what the first half is, "eps" or "x_0".
    clip_denoised: whether predicted clean images are clamped to [-1, 1], as the reference programs do.

    In all methods x_t, x_0, eps are (N, C, H, W) float32.
    """

    schedule: Schedule
    variance: Literal["learned_range", "fixed_small", "fixed_large"] = "learned_range"
    prediction: Literal["eps", "x_0"] = "eps"
    clip_denoised: bool = True

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {self.variance!r}; expected one of {', '.join(VARIANCES)}")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {self.prediction!r}; expected one of {', '.join(PREDICTIONS)}")

    @classmethod
    def from_flags(cls, flags: Flags) -> "GaussianDiffusion":
        """Build from the diffusion flags of guided-diffusion and improved-diffusion, with their defaults."""
        arguments = read_diffusion_flags(flags)
        schedule = {"linear": Schedule.linear, "cosine": Schedule.cosine}[arguments.pop("schedule")]
        steps, rescale, respacing = (arguments.pop(key) for key in ("steps", "rescale_timesteps", "respacing"))
        diffusion = cls(schedule(steps, rescale), **arguments)
        return diffusion.respace(respacing) if respacing else diffusion

    def respace(self, steps: int | str) -> "GaussianDiffusion":
        """The same diffusion on fewer steps (see `Schedule.respace`)."""
        return replace(self, schedule=self.schedule.respace(steps))

    def q_sample(self, x_0: Tensor, t: Index, eps: Tensor) -> Tensor:
        """x_0 noised to step t with the given eps (arXiv:2006.11239, Eq. 4)."""
        return _at(self.schedule.signal, t, x_0) * x_0 + _at(self.schedule.noise, t, x_0) * eps

    def x0_from_eps(self, x_t: Tensor, t: Index, eps: Tensor) -> Tensor:
        """The clean image that x_t and eps imply, not clamped (the inverse of `q_sample`)."""
        of_xt, of_eps = self.schedule.clean_of_noisy
        return _at(of_xt, t, x_t) * x_t - _at(of_eps, t, x_t) * eps

    def eps_from_x0(self, x_t: Tensor, t: Index, x_0: Tensor) -> Tensor:
        """The noise that x_t and a clean image imply."""
        of_xt, of_eps = self.schedule.clean_of_noisy
        return (_at(of_xt, t, x_t) * x_t - x_0) / _at(of_eps, t, x_t)

    def predicted_x0(self, x_t: Tensor, t: Index, eps: Tensor) -> Tensor:
        """The clean image that x_t and eps imply, clamped to [-1, 1] if `clip_denoised`."""
        x_0 = self.x0_from_eps(x_t, t, eps)
        return x_0.clamp(-1, 1) if self.clip_denoised else x_0

    def posterior_mean(self, x_t: Tensor, t: Index, x_0: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0) (arXiv:2006.11239, Eq. 7)."""
        s = self.schedule
        of_x0 = s.betas * np.sqrt(s.alpha_bar_prev) / (1 - s.alpha_bar)
        of_xt = (1 - s.alpha_bar_prev) * np.sqrt(1 - s.betas) / (1 - s.alpha_bar)
        return _at(of_x0, t, x_t) * x_0 + _at(of_xt, t, x_t) * x_t

    def learned_log_variance(self, v: Tensor, t: Index) -> Tensor:
        """The log-variance that the network's v (N, C, H, W), in [-1, 1], stands for (arXiv:2102.09672, Eq. 15)."""
        fraction = (v + 1) / 2
        upper, lower = _at(np.log(self.schedule.betas), t, v), _at(self.schedule.posterior_log_variance, t, v)
        return fraction * upper + (1 - fraction) * lower

    def fixed_log_variance(self, t: Index, like: Tensor) -> Tensor:
        """The log-variance of "fixed_small" or "fixed_large", broadcast to the shape of `like`."""
        table = self.schedule.posterior_log_variance
        if self.variance == "fixed_large":  # the first step keeps the small one: its beta would add visible noise
            table = np.concatenate([table[:1], np.log(self.schedule.betas[1:])])
        return torch.ones_like(like) * _at(table, t, like)


def _at(table: Table, t: Index, like: Tensor) -> Tensor | float:
    """Row t of a float64 table: a number, or (N, 1, 1, 1) float32 on the device of `like`."""
    if isinstance(t, int):
        return float(table[t])
    rows = torch.from_numpy(table)[t.cpu()].to(like.device, torch.float32)
    return rows.view(-1, *[1] * (like.dim() - 1))
