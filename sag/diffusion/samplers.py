"""Samplers, which are rules for one step, and the loop over all steps. They accept any denoiser, guided or not."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from sag.diffusion.condition import Condition
from sag.diffusion.denoiser import DenoiserLike, Memory, Prediction
from sag.diffusion.gaussian import GaussianDiffusion


@dataclass(frozen=True)
class Step:
    """The result of one step.

    Attributes:
        t: The step.
        x: The less noisy x_{t-1}, (N, C, H, W) float32.
        x_0: The predicted clean image, (N, C, H, W) float32.
    """

    t: int
    x: Tensor
    x_0: Tensor


Predict = Callable[[Tensor, int], Prediction]
"""predict(x, t): the denoiser's prediction at another x and t, for samplers that need several predictions per step."""


@dataclass(frozen=True)
class Sampler(ABC):
    """A rule for one step. It has no state: `step` is given the earlier steps that it needs.

    Args:
        steps: How the schedule is respaced before sampling (see `Schedule.respace`).
    """

    steps: int | str = 250
    looks_back: ClassVar[int] = 0
    """How many earlier steps `step` is given."""

    def respace(self, denoiser: DenoiserLike) -> DenoiserLike:
        """Return the denoiser on the steps of this sampler. A second call changes nothing.

        Raises:
            ValueError: If the denoiser's schedule has no such steps.
        """
        return denoiser.respace(self.steps)

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
            t: The step, an index of the schedule.
            prediction: The denoiser's prediction from x_t.
            noise: noise(t) returns standard normal numbers in the shape of x_t. Call it only if the step is random.
            history: The last `looks_back` steps, newest last; fewer at the beginning.
            predict: Calls the denoiser again. What techniques remember from such calls is discarded.
        """


@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling (arXiv:2006.11239, Alg. 2), with classifier guidance as in arXiv:2105.05233, Alg. 1.

    If the denoiser predicts no variance, the posterior's variance is used.

    Args:
        steps: See `Sampler`.
    """

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


def clean_and_noise(diffusion: GaussianDiffusion, x_t: Tensor, t: int, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Return the clean image, clamped where `clip_denoised` says so, and the noise that a prediction splits x_t into.

    A classifier's score changes both, as in arXiv:2105.05233, Alg. 2.

    Args:
        diffusion: The diffusion, respaced.
        x_t: (N, C, H, W) float32.
        t: The step.
        prediction: The denoiser's prediction from x_t.
    """
    x_0 = diffusion.predicted_x0(x_t, t, prediction.eps, prediction.x_0)
    eps = diffusion.eps_from_x0(x_t, t, x_0)
    if prediction.score is not None:
        eps = eps - float(diffusion.schedule.noise[t]) * prediction.score
        x_0 = diffusion.x0_from_eps(x_t, t, eps)
    return x_0, eps


@dataclass(frozen=True)
class DDIM(Sampler):
    """The implicit sampler (arXiv:2010.02502, Eq. 12), with classifier guidance as in arXiv:2105.05233, Alg. 2.

    As in guided-diffusion, eps is computed again from the clamped x_0, and the classifier's change of x_0 is not clamped.

    Args:
        steps: See `Sampler`.
        eta: 0 is deterministic; 1 is as random as DDPM with variance "fixed_small".
    """

    eta: float = 0.0

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
        schedule = diffusion.schedule
        x_0, eps = clean_and_noise(diffusion, x_t, t, prediction)
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
    """Go from pure noise to samples, one `Step` at a time. The x of the last step is the sample.

    Args:
        denoiser: The denoiser. It is respaced to the sampler's steps, unless it already is.
        sampler: The rule for one step.
        x_T: (N, C, H, W) float32 standard normal.
        condition: What the denoiser is told about the samples.
        noise: noise(t) returns the standard normal numbers of step t, in the shape of x_T.

    Yields:
        Each step, from t = steps - 1 down to t = 0.

    Raises:
        ValueError: If the denoiser's schedule cannot be respaced to the sampler's steps.
        FloatingPointError: If a step gives values that are not finite. The message names the step and the images.
    """
    denoiser = sampler.respace(denoiser)
    history: deque[Step] = deque(maxlen=sampler.looks_back)
    memory = Memory()
    x = x_T
    steps = len(denoiser.diffusion.schedule)
    for t in reversed(range(steps)):
        prediction = denoiser(x, t, condition, memory=memory)
        memory = prediction.memory
        predict = partial(denoiser, condition=condition, memory=memory)
        step = sampler.step(denoiser.diffusion, x, t, prediction, noise, history, predict)
        del prediction  # so that its memory is free during the next prediction
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
