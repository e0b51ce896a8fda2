"""Guidance as one sentence: compare the prediction with a weaker one, and move away from the weaker.

    eps_guided = eps + sum_i s_i (eps_i - eps_weak_i)

eps_i is eps itself, or the unconditional prediction for techniques that work on that branch. A guided denoiser is again a
denoiser. s_i = 0 is exactly off: no extra pass, bit-equal output.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor

from sag.diffusion import Condition, DenoiserLike, GaussianDiffusion, Prediction
from sag.diffusion.condition import check_condition
from sag.models import Attend, AttentionLayer

NEEDS_NULL = "needs a network trained with a null class; this one has none (null_label is not set)"
Branch = Literal["cond", "uncond"]
Random = Callable[[int, tuple[int, int]], Tensor]
"""random(t, (h, w)) -> (N, h, w) float32: numbers that depend on the sample and the step only."""


class Guidance:
    """One technique: a `WeakGuidance` or a `ScoreGuidance`.

    scale: the paper's s; 0 is off. interval: the lowest and highest time (`Schedule.time`: t / T, 0 to 1) at which it is on, so
    that it means the same at 25 and at 250 steps.
    """

    extra_passes: ClassVar[int] = 0
    """Passes through the denoiser that it adds to those it shares (see `GuidanceState`)."""
    needs_uncond: ClassVar[bool] = False
    """Whether it needs the unconditional prediction, and thereby makes the step have two branches."""

    def __init__(self, scale: float, interval: Sequence[float]) -> None:
        low, high = interval if len(interval) == 2 else (1.0, 0.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval must be two times with 0 <= low <= high <= 1, got {list(interval)}")
        self.scale = float(scale)
        self.interval = (low, high)

    def active(self, time: float) -> bool:
        """Whether it does anything at this time."""
        return self.scale != 0 and self.interval[0] <= time <= self.interval[1]

    def check(self, denoiser: DenoiserLike) -> None:
        """Raise a ValueError if this technique cannot guide this denoiser."""


class WeakGuidance(Guidance, ABC):
    """A technique that makes a weaker prediction: write `weak`, and name what it reads in `branch` and `capture`."""

    branch: Branch = "cond"
    capture: tuple[str, ...] = ()

    @abstractmethod
    def weak(self, state: "GuidanceState") -> Tensor:
        """The weaker eps, (N, C, H, W) float32."""


class ScoreGuidance(Guidance, ABC):
    """A technique that brings a score, grad log p(y | x_t), which DDPM and DDIM use differently."""

    @abstractmethod
    def score(self, state: "GuidanceState") -> Tensor:
        """Scale times the score, (N, C, H, W) float32."""


class GuidanceState:
    """One step as the techniques see it: x_t, t, the condition, and the predictions that they share, each made once, on demand.

    The unconditional branch exists where an active technique needs it (classifier-free guidance); elsewhere there is one
    prediction, and both branch names mean it.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        x_t: Tensor,
        t: int,
        condition: Condition | None,
        active: Sequence[Guidance],
        capture: Collection[str],
        attend: Mapping[str, Attend] | None,
        random: Random | None,
    ) -> None:
        self.denoiser = denoiser
        self.x_t = x_t
        self.t = t
        check_condition(condition, len(x_t))
        self._two_branches = any(g.needs_uncond for g in active)
        self._conditions = {"cond": condition, "uncond": _without(condition) if self._two_branches else condition}
        self._capture: dict[Branch, set[str]] = {"cond": set(capture), "uncond": set()}
        for g in active:
            if isinstance(g, WeakGuidance):
                self._capture[self._branch(g.branch)].update(g.capture)
        self._attend = attend
        self._random = random
        self._predictions: dict[Branch, Prediction] = {}

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion of the denoiser."""
        return self.denoiser.diffusion

    def _branch(self, branch: Branch) -> Branch:
        return branch if self._two_branches else "cond"

    def condition(self, branch: Branch) -> Condition | None:
        """The condition of a branch."""
        return self._conditions[branch]

    def prediction(self, branch: Branch) -> Prediction:
        """The denoiser's answer for x_t on a branch, with the attention that active techniques read there."""
        branch = self._branch(branch)
        if branch not in self._predictions:
            attend = self._attend if branch == "cond" else None
            self._predictions[branch] = self.denoiser(
                self.x_t, self.t, self.condition(branch), capture=self._capture[branch], attend=attend
            )
        return self._predictions[branch]

    def random(self, size: tuple[int, int]) -> Tensor:
        """(N, h, w) float32 numbers that depend on the sample and the step only.

        Raises:
            ValueError: the guided denoiser was given no source of them.
        """
        if self._random is None:
            raise ValueError("a random mask needs random numbers: give GuidedDenoiser its argument random")
        return self._random(self.t, size)


def _without(condition: Condition | None) -> Condition:
    if condition is None or (condition.labels is None and condition.text is None):
        raise ValueError("classifier-free guidance needs labels or text, to compare with none")
    null = condition.null()
    if null is None:
        raise ValueError(f"classifier-free guidance {NEEDS_NULL}")
    return null


class GuidedDenoiser:
    """A denoiser with any number of techniques on top; called like the denoiser, so it nests.

    Raises:
        ValueError: on construction, if a technique does not fit the denoiser (unknown layer, no null class, ...).
    """

    def __init__(self, denoiser: DenoiserLike, guidance: Sequence[Guidance], random: Random | None = None) -> None:
        for g in guidance:
            g.check(denoiser)
        self.denoiser = denoiser
        self.guidance = tuple(guidance)
        self._random = random

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion of the denoiser within."""
        return self.denoiser.diffusion

    @property
    def attention_layers(self) -> Mapping[str, AttentionLayer]:
        """The attention layers of the denoiser within."""
        return self.denoiser.attention_layers

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the denoiser within denoises."""
        return self.denoiser.shape

    @property
    def num_classes(self) -> int | None:
        """The number of labels of the denoiser within."""
        return self.denoiser.num_classes

    def respace(self, steps: int | str) -> "GuidedDenoiser":
        """Return the same techniques on the denoiser within, respaced."""
        return GuidedDenoiser(self.denoiser.respace(steps), self.guidance, self._random)

    def decode(self, x_0: Tensor) -> Tensor:
        """Return the images that x_0 stands for, by the denoiser within."""
        return self.denoiser.decode(x_0)

    def active(self, t: int) -> list[Guidance]:
        """The techniques that are on at step t."""
        time = float(self.diffusion.schedule.time[t])
        return [g for g in self.guidance if g.active(time)]

    def passes(self, t: int) -> int:
        """How often the denoiser within is asked at step t."""
        active = self.active(t)
        return 1 + any(g.needs_uncond for g in active) + sum(g.extra_passes for g in active)

    def __call__(
        self,
        x_t: Tensor,
        t: int,
        condition: Condition | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
    ) -> Prediction:
        """As `Denoiser.__call__`; eps and score are guided, log-variance and attention are those of the first pass."""
        active = self.active(t)
        state = GuidanceState(self.denoiser, x_t, t, condition, active, capture, attend, self._random)
        first = state.prediction("cond")
        eps, score = first.eps, first.score
        for g in active:
            if isinstance(g, WeakGuidance):
                eps = eps + g.scale * (state.prediction(g.branch).eps - g.weak(state))
            elif isinstance(g, ScoreGuidance):
                score = g.score(state) if score is None else score + g.score(state)
        return replace(first, eps=eps, score=score, x_0=first.x_0 if eps is first.eps else None)
