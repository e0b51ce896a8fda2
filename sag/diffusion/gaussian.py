"""The closed forms of Gaussian diffusion, without any network (arXiv:2006.11239; arXiv:2102.09672)."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sag.diffusion.schedule import Schedule, Table
from sag.flags import Flags, read_diffusion_flags

Index = int | Tensor
"""A step of the (respaced) schedule: one number for all images, or (N,) int64 with one per image."""

VARIANCES = ("learned_range", "fixed_small", "fixed_large")
PREDICTIONS = ("eps", "x_0", "v", "flow")
DELTA_SPACES = ("output", "eps")


@dataclass(frozen=True)
class GaussianDiffusion:
    """A schedule, together with the meaning of the network's output.

    In all methods, x_t, x_0, eps and output are (N, C, H, W) float32, and t is the step of x_t.

    Args:
        schedule: How much signal and noise x_t has at each step.
        variance: "learned_range": the second half of the output interpolates between the other two; "fixed_small": the
            posterior's variance; "fixed_large": beta; None: no variance is predicted.
        prediction: The meaning of the output, or of its first half: "eps", "x_0", "v" (signal eps - noise x_0,
            arXiv:2202.00512) or "flow" (eps - x_0, the velocity of a straight path from image to noise, arXiv:2210.02747).
        clip_denoised: Whether predicted clean images are clamped to [-1, 1], as the reference programs do.
        delta_space: What guidance sums up: "output", the network's outputs, or "eps". The two differ if the weaker prediction
            is made from another x_t. None is "output" for v and flow, and "eps" for the others.

    Raises:
        ValueError: If the variance, the prediction or the delta space is unknown, if a schedule without betas is given a
            variance, or if eps alone would have to determine the image at a step without signal.
    """

    schedule: Schedule
    variance: Literal["learned_range", "fixed_small", "fixed_large"] | None = "learned_range"
    prediction: Literal["eps", "x_0", "v", "flow"] = "eps"
    clip_denoised: bool = True
    delta_space: Literal["output", "eps"] | None = None

    def __post_init__(self) -> None:
        if self.variance is not None and self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {self.variance!r}; expected one of {', '.join(VARIANCES)}, or null for none")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {self.prediction!r}; expected one of {', '.join(PREDICTIONS)}")
        if self.variance is not None and self.schedule.variances is None:
            raise ValueError(
                f"variance={self.variance} needs a variance-preserving schedule, and this one is not; use variance=null"
            )
        if self.delta_space not in (None, *DELTA_SPACES):
            raise ValueError(f"unknown delta_space {self.delta_space!r}; expected {' or '.join(DELTA_SPACES)}, or null")
        if self.delta_space == "eps" and self.schedule.signal[-1] == 0:
            raise ValueError("delta_space=eps needs some signal at every step, and this schedule ends without; use output")
        if self.prediction == "eps" and self.schedule.signal[-1] == 0:
            raise ValueError(
                "prediction=eps does not determine the image where there is no signal, as at the end of this schedule; "
                "use x_0, v or flow, whichever the network was trained for"
            )

    @classmethod
    def from_flags(cls, flags: Flags) -> "GaussianDiffusion":
        """Build a diffusion from the flags of guided-diffusion or improved-diffusion.

        Args:
            flags: Values by flag name. Missing flags take the defaults of those programs.

        Raises:
            ValueError: If a flag is unknown, or a value has the wrong type or is not supported.
        """
        arguments = read_diffusion_flags(flags)
        schedule = {"linear": Schedule.linear, "cosine": Schedule.cosine}[arguments.pop("schedule")]
        steps, rescale, respacing = (arguments.pop(key) for key in ("steps", "rescale_timesteps", "respacing"))
        diffusion = cls(schedule(steps, rescale), **arguments)
        return diffusion.respace(respacing) if respacing else diffusion

    def respace(self, steps: int | str | Schedule) -> "GaussianDiffusion":
        """Return the same diffusion on fewer steps (see `Schedule.respace`), or on another schedule."""
        schedule = steps if isinstance(steps, Schedule) else self.schedule.respace(steps)
        return self if schedule is self.schedule else replace(self, schedule=schedule)

    def q_sample(self, x_0: Tensor, t: Index, eps: Tensor) -> Tensor:
        """Add the noise of step t to x_0: x_t = signal x_0 + noise eps (arXiv:2006.11239, Eq. 4)."""
        return _at(self.schedule.signal, t, x_0) * x_0 + _at(self.schedule.noise, t, x_0) * eps

    @property
    def carries_x0(self) -> bool:
        """Whether a `Prediction` has x_0 as well: if outputs other than eps are summed up, or the last step has no signal."""
        summed = self.delta_space or ("output" if self.prediction in ("v", "flow") else "eps")
        return bool((summed == "output" and self.prediction != "eps") or self.schedule.signal[-1] == 0)

    def split(self, output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """Split a network's output into the prediction and the part that encodes the variance.

        Args:
            output: The network's output, (N, channels or 2 channels, H, W).
            channels: Number of channels of the images.

        Returns:
            The prediction, (N, channels, H, W), and the encoded variance of the same shape, or None unless it is learned.

        Raises:
            ValueError: If the network's number of channels does not fit the variance.
        """
        learned = self.variance == "learned_range"
        wanted = 2 * channels if learned else channels
        if output.shape[1] != wanted:
            raise ValueError(
                f"with variance={self.variance or 'null'} a network for images of {channels} channels gives {wanted} channels, "
                f"and this one gives {output.shape[1]}; set out_channels={wanted}, or the variance it was trained with"
            )
        if not learned:
            return output, None
        output, of_variance = output.chunk(2, dim=1)  # (N, C, H, W) each
        return output, of_variance

    def resolve(self, output: Tensor, x_t: Tensor, t: Index) -> tuple[Tensor, Tensor]:
        """Convert the network's output at x_t into eps and x_0. x_0 is not clamped."""
        if self.prediction == "eps":
            return output, self.x0_from_eps(x_t, t, output)
        if self.prediction == "x_0":
            return self.eps_from_x0(x_t, t, output), output
        signal, noise = self.schedule.signal, self.schedule.noise
        # The inverse of the two equations x_t = signal x_0 + noise eps and output = target(x_0, eps)
        if self.prediction == "v":
            whole, eps_of_xt, x0_of_xt = signal**2 + noise**2, noise, signal
        else:
            whole, eps_of_xt, x0_of_xt = signal + noise, np.ones_like(noise), np.ones_like(signal)
        eps = _at(eps_of_xt / whole, t, x_t) * x_t + _at(signal / whole, t, x_t) * output
        x_0 = _at(x0_of_xt / whole, t, x_t) * x_t - _at(noise / whole, t, x_t) * output
        return eps, x_0

    def target(self, x_0: Tensor, eps: Tensor, t: Index) -> Tensor:
        """Return what the network should output for x_0 and eps: the target in training."""
        if self.prediction == "v":
            return _at(self.schedule.signal, t, x_0) * eps - _at(self.schedule.noise, t, x_0) * x_0
        if self.prediction == "flow":
            return eps - x_0
        return eps if self.prediction == "eps" else x_0

    def x0_from_eps(self, x_t: Tensor, t: Index, eps: Tensor) -> Tensor:
        """Compute the clean image from x_t and eps, not clamped (the inverse of `q_sample`).

        Raises:
            ValueError: If step t has no signal, so that no image follows from them.
        """
        if isinstance(t, int) and self.schedule.signal[t] == 0:
            raise ValueError(
                f"x_0 does not follow from eps at t = {t}, where there is no signal; "
                "with this schedule, classifier guidance needs an interval that ends below time 1"
            )
        of_xt, of_eps = self.schedule.clean_of_noisy
        return _at(of_xt, t, x_t) * x_t - _at(of_eps, t, x_t) * eps

    def eps_from_x0(self, x_t: Tensor, t: Index, x_0: Tensor) -> Tensor:
        """Compute the noise from x_t and the clean image."""
        if self.schedule.signal[-1] == 0:
            return (x_t - _at(self.schedule.signal, t, x_t) * x_0) / _at(self.schedule.noise, t, x_t)
        of_xt, of_eps = self.schedule.clean_of_noisy
        return (_at(of_xt, t, x_t) * x_t - x_0) / _at(of_eps, t, x_t)

    def predicted_x0(self, x_t: Tensor, t: Index, eps: Tensor, x_0: Tensor | None = None) -> Tensor:
        """Return the predicted clean image, clamped to [-1, 1] if `clip_denoised`.

        Args:
            x_t: The noisy image.
            t: The step.
            eps: The predicted noise.
            x_0: The clean image, if the prediction has it (see `Prediction`); by default it is computed from x_t and eps.
        """
        x_0 = self.x0_from_eps(x_t, t, eps) if x_0 is None else x_0
        return x_0.clamp(-1, 1) if self.clip_denoised else x_0

    def posterior_mean(self, x_t: Tensor, t: Index, x_0: Tensor) -> Tensor:
        """Return the mean of q(x_{t-1} | x_t, x_0) (arXiv:2006.11239, Eq. 7)."""
        s = self.schedule
        of_x0 = s.betas * np.sqrt(s.alpha_bar_prev) / (1 - s.alpha_bar)
        of_xt = (1 - s.alpha_bar_prev) * np.sqrt(1 - s.betas) / (1 - s.alpha_bar)
        return _at(of_x0, t, x_t) * x_0 + _at(of_xt, t, x_t) * x_t

    def learned_log_variance(self, v: Tensor, t: Index) -> Tensor:
        """Convert the network's encoded variance v (N, C, H, W), in [-1, 1], to a log-variance (arXiv:2102.09672, Eq. 15)."""
        fraction = (v + 1) / 2
        with np.errstate(divide="ignore", invalid="ignore"):  # rows of second-order schedulers that repeat have no variance
            upper, lower = _at(np.log(self.schedule.betas), t, v), _at(self.schedule.posterior_log_variance, t, v)
        return fraction * upper + (1 - fraction) * lower

    def fixed_log_variance(self, t: Index, like: Tensor) -> Tensor:
        """Return the log-variance of beta for "fixed_large", else of the posterior, in the shape of `like`."""
        table = self.schedule.posterior_log_variance
        if self.variance == "fixed_large":  # the first step keeps the posterior's: its beta would add visible noise
            table = np.concatenate([table[:1], np.log(self.schedule.betas[1:])])
        return torch.ones_like(like) * _at(table, t, like)


def _at(table: Table, t: Index, like: Tensor) -> Tensor | float:
    """Return row t of a float64 table: a number, or (N, 1, 1, 1) float32 on the device of `like`."""
    if isinstance(t, int):
        return float(table[t])
    rows = torch.from_numpy(table)[t.cpu()].to(like.device, torch.float32)
    return rows.view(-1, *[1] * (like.dim() - 1))
