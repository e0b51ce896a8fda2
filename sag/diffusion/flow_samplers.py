"""Samplers for flows, the straight paths between image and noise of `Schedule.flow`, with steps of equal length.

Euler's method needs no sampler of its own: on such a schedule, DDIM is Euler's method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from typing_extensions import override

from sag.diffusion.denoiser import DenoiserLike, Prediction
from sag.diffusion.gaussian import GaussianDiffusion
from sag.diffusion.samplers import Predict, Sampler, Step, clean_and_noise
from sag.diffusion.schedule import Schedule

RESOLUTION = 10**6  # of the times of steps, as numbers of training steps


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method for the ordinary differential equation (arXiv:2401.08740, section 2.3): two predictions in a step.

    Args:
        steps: Number of steps. The last one needs one prediction only.
    """

    @override
    def respace(self, denoiser: DenoiserLike) -> DenoiserLike:
        count = _count(self.steps)
        return _with_times(denoiser, 1 / count, count)

    @override
    def step(
        self,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: int,
        prediction: Prediction,
        noise: Callable[[int], Tensor],
        history: Sequence[Step] = (),
        predict: Predict | None = None,
    ) -> Step:
        x_0, eps = clean_and_noise(diffusion, x_t, t, prediction)
        velocity, length = x_0 - eps, _length(diffusion.schedule, t)
        if t > 0:
            assert predict is not None
            x = x_t + length * velocity
            end_x_0, end_eps = clean_and_noise(diffusion, x, t - 1, predict(x, t - 1))
            velocity = (velocity + end_x_0 - end_eps) / 2
        return Step(t, x_t + length * velocity, x_0)


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """The Euler-Maruyama method for the stochastic differential equation of SiT (arXiv:2401.08740, Eq. 5).

    It adds noise at every step and removes as much: with u = t, the noise level, and w = strength * u,

        dx = (x_0 - eps - w eps / u) du + sqrt(2 w du) z

    for a step of length du towards the image. The last step adds no noise.

    Args:
        steps: Number of steps, which is that of predictions.
        strength: SiT's diffusion_norm; 0 is Euler's method without noise.
        last_step: Length of the last step, as a share of the path. The others are equally long.

    Raises:
        ValueError: If the strength is negative, or the last step is not between 0 and 1.
    """

    strength: float = 1.0
    last_step: float = 0.04

    def __post_init__(self) -> None:
        if not 0 < self.last_step < 1:
            raise ValueError(f"last_step must be more than 0 and less than 1, got {self.last_step}")
        if self.strength < 0:
            raise ValueError(f"strength must be at least 0, got {self.strength}")

    @override
    def respace(self, denoiser: DenoiserLike) -> DenoiserLike:
        return _with_times(denoiser, self.last_step, _count(self.steps))

    @override
    def step(
        self,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: int,
        prediction: Prediction,
        noise: Callable[[int], Tensor],
        history: Sequence[Step] = (),
        predict: Predict | None = None,
    ) -> Step:
        x_0, eps = clean_and_noise(diffusion, x_t, t, prediction)
        length = _length(diffusion.schedule, t)
        x = x_t + length * (x_0 - (1 + self.strength) * eps)
        if t > 0 and self.strength > 0:
            x = x + (2 * self.strength * float(diffusion.schedule.noise[t]) * length) ** 0.5 * noise(t)
        return Step(t, x, x_0)


def _count(steps: int | str) -> int:
    text = str(steps).strip()
    if not text.isdigit() or int(text) < 2:
        raise ValueError(f"steps of this sampler must be a whole number from 2 on, got {text!r}")
    return int(text)


def _length(schedule: Schedule, t: int) -> float:
    """Return the length of the step from t: the noise at t minus that at t - 1."""
    return float(schedule.noise[t]) - (float(schedule.noise[t - 1]) if t > 0 else 0.0)


def _with_times(denoiser: DenoiserLike, first: float, count: int) -> DenoiserLike:
    """Return a denoiser on `count` times that are evenly spread from `first` to 1.

    Raises:
        ValueError: If its schedule is not a flow.
    """
    schedule, times = denoiser.diffusion.schedule, np.linspace(first, 1, count)
    if len(schedule) == count and np.allclose(schedule.noise, times, rtol=0, atol=1e-12):
        return denoiser
    scale = schedule.tau[-1] / schedule.noise[-1]
    if not np.allclose(schedule.signal + schedule.noise, 1) or not np.allclose(schedule.tau, scale * schedule.noise):
        raise ValueError(
            "this sampler is for flows, whose signal is 1 - t and whose noise is t, and this model's schedule is another one; "
            "use sampler=ddim or sampler=ddpm"
        )
    steps = np.rint(times * RESOLUTION).astype(np.int64)
    return denoiser.respace(Schedule(1 - times, times, scale * times, steps, RESOLUTION))
