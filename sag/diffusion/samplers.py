"""Samplers: one step each, and the one loop. They run on any denoiser and know nothing of guidance."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from sag.diffusion.condition import Condition
from sag.diffusion.denoiser import DenoiserLike, Memory, Prediction
from sag.diffusion.gaussian import GaussianDiffusion


@dataclass(frozen=True)
class Step:
    """After one step: its index t, the less noisy x (x_{t-1}) and the predicted clean x_0, both (N, C, H, W) float32."""

    t: int
    x: Tensor
    x_0: Tensor


Predict = Callable[[Tensor, int], Prediction]
"""predict(x, t): what the denoiser says of another x and t, for a sampler that asks more than once in a step."""


@dataclass(frozen=True)
class Sampler(ABC):
    """A rule for one step. It has no state: what it needs of earlier steps it is given.

    Args:
        steps: How the schedule is respaced before sampling (see `Schedule.respace`).
    """

    steps: int | str = 250
    looks_back: ClassVar[int] = 0
    """How many earlier steps it is given."""

    @abstractmethod
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
        """Go from x_t to x_{t-1}.

        Args:
            diffusion: The diffusion, respaced.
            x_t: (N, C, H, W) float32.
            t: The index in the schedule.
            prediction: What the denoiser says of x_t.
            noise: noise(t) is standard normal of the shape of x_t; call it only if the step is random.
            history: The last `looks_back` steps, the newest last; fewer at the beginning.
            predict: Asks the denoiser again. What techniques would remember of such a trial is forgotten.
        """


@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling (arXiv:2006.11239, Alg. 2), with classifier guidance by arXiv:2105.05233, Alg. 1.

    Where the denoiser says nothing of the variance, it is the posterior's.
    """

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
        """See `Sampler.step`; the last step (t = 0) returns the mean."""
        x_0 = diffusion.predicted_x0(x_t, t, prediction.eps, prediction.x_0)
        x = diffusion.posterior_mean(x_t, t, x_0)
        log_variance = prediction.log_variance
        if log_variance is None:
            log_variance = diffusion.fixed_log_variance(t, x_t)
        if prediction.score is not None:
            x = x + log_variance.exp() * prediction.score
        if t > 0:
            x = x + (0.5 * log_variance).exp() * noise(t)
        return Step(t, x, x_0)


@dataclass(frozen=True)
class DDIM(Sampler):
    """The implicit sampler (arXiv:2010.02502, Eq. 12), with classifier guidance by arXiv:2105.05233, Alg. 2.

    eta: 0 is deterministic, 1 as random as DDPM with the small variance.
    """

    eta: float = 0.0

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
        """See `Sampler.step`. As in guided-diffusion, eps is taken again from the clamped x_0, and the classifier's shift of it
        is not clamped after.
        """
        schedule = diffusion.schedule
        x_0 = diffusion.predicted_x0(x_t, t, prediction.eps, prediction.x_0)
        eps = diffusion.eps_from_x0(x_t, t, x_0)
        if prediction.score is not None:
            eps = eps - float(schedule.noise[t]) * prediction.score
            x_0 = diffusion.x0_from_eps(x_t, t, eps)
        sigma = self.eta * float(schedule.posterior_variance[t]) ** 0.5
        x = float(schedule.signal_prev[t]) * x_0 + (float(schedule.variance_prev[t]) - sigma**2) ** 0.5 * eps
        if t > 0 and sigma > 0:
            x = x + sigma * noise(t)
        return Step(t, x, x_0)


@torch.no_grad()
def sample(
    denoiser: DenoiserLike,
    sampler: Sampler,
    x_T: Tensor,
    condition: Condition | None = None,
    *,
    noise: Callable[[int], Tensor],
) -> Iterator[Step]:
    """Walk from pure noise to images, one `Step` at a time; the last one's x is the sample.

    Args:
        denoiser: It is respaced to the sampler's steps here; one that is respaced so already is taken as it is.
        sampler: How to go from one step to the next.
        x_T: (N, C, H, W) float32 standard normal.
        condition: What the denoiser is told of the samples.
        noise: noise(t) gives the standard normal of step t, of the shape of x_T.

    Raises:
        ValueError: If the denoiser's schedule cannot have the sampler's steps.
        FloatingPointError: the first step after which a value is not finite, and in which images.
    """
    denoiser = denoiser.respace(sampler.steps)
    history: deque[Step] = deque(maxlen=sampler.looks_back)
    memory = Memory()
    x = x_T
    steps = len(denoiser.diffusion.schedule)
    for t in reversed(range(steps)):
        prediction = denoiser(x, t, condition, memory=memory)
        memory = prediction.memory
        predict = partial(denoiser, condition=condition, memory=memory)
        step = sampler.step(denoiser.diffusion, x, t, prediction, noise, history, predict)
        del prediction  # its memory is free while the next one is made
        history.append(step)
        x = step.x
        bad = ~torch.isfinite(x).flatten(1).all(dim=1)
        if bad.any():
            raise FloatingPointError(
                f"step {steps - t} of {steps} (t = {t}, tau = {denoiser.diffusion.schedule.tau[t]:g}) gave values that are not "
                f"finite in image {', '.join(map(str, bad.nonzero().flatten().tolist()))} of the batch; "
                "a smaller guidance scale or precision=float32 may help"
            )
        yield step
