"""What techniques are, and the step as they see it.

A technique compares a prediction with a weaker one, or brings a score, or changes what the others add together. It has no
state: what it wants to find at the next step it leaves in the memory of the trajectory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from sag.diffusion import Condition, DenoiserLike, GaussianDiffusion, Memory, Prediction, Remembered
from sag.diffusion.condition import check_condition
from sag.guidance.batch import Question, ask_together
from sag.models import Attend

NEEDS_NULL = "needs a network trained with a null class; this one has none (null_label is not set)"
Branch = Literal["cond", "uncond"]
Random = Callable[[int, tuple[int, int]], Tensor]
"""random(t, (h, w)) -> (N, h, w) float32: numbers that depend on the sample and the step only."""
Scale = float | Callable[[float], float]
"""A scale, or a function of the time t / T that gives it (see `ScaleSchedule`)."""


class Guidance:
    """One technique: a `WeakGuidance`, a `ScoreGuidance` or a `DifferenceTransform`.

    Args:
        scale: The paper's s, or a function of time that gives it; 0 is off.
        interval: The lowest and highest time (`Schedule.time`: t / T, 0 to 1) at which the technique is on, so that it means
            the same at 25 and at 250 steps.

    Raises:
        ValueError: If the scale is neither a number nor a function, or the interval is not two times in order.
    """

    needs_uncond: ClassVar[bool] = False
    """Whether it needs the unconditional prediction, and thereby makes the step have two branches."""

    def __init__(self, scale: Scale, interval: Sequence[float]) -> None:
        low, high = interval if len(interval) == 2 else (1.0, 0.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval must be two times with 0 <= low <= high <= 1, got {list(interval)}")
        try:
            self.scale: Scale = scale if callable(scale) else float(scale)
        except (TypeError, ValueError):
            raise ValueError(f"scale must be a number or a function of time, got {scale!r}") from None
        self.interval = (low, high)

    def scale_at(self, time: float) -> float:
        """Return the scale at a time t / T, which is 0 outside the interval."""
        if not self.interval[0] <= time <= self.interval[1]:
            return 0.0
        return float(self.scale(time)) if callable(self.scale) else self.scale

    def active(self, time: float) -> bool:
        """Whether it does anything at this time."""
        return self.scale_at(time) != 0

    def check(self, denoiser: DenoiserLike) -> None:
        """Raise a ValueError if this technique cannot guide this denoiser."""


class WeakGuidance(Guidance, ABC):
    """A technique that makes a weaker prediction: write `question`, and name what it reads in `branch` and `capture`."""

    branch: Branch = "cond"
    capture: tuple[str, ...] = ()

    @abstractmethod
    def question(self, state: "GuidanceState") -> Question | None:
        """Return what the denoiser is asked for the weaker prediction, or None if `weak` needs no answer.

        Only what the technique remembers may decide that there is no question; when it is on is a matter of its scale.
        """

    def weak(self, state: "GuidanceState", answer: Prediction | None) -> Prediction:
        """Return the weaker prediction: the answer to the question, unless a technique makes something else of it."""
        if answer is None:
            raise NotImplementedError(f"{type(self).__name__} asks no question, so it has to write weak")
        return answer


class ScoreGuidance(Guidance, ABC):
    """A technique that brings a score, grad log p(y | x_t), which DDPM and DDIM use differently."""

    @abstractmethod
    def score(self, state: "GuidanceState") -> Tensor:
        """Scale times the score, (N, C, H, W) float32."""


class DifferenceTransform(Guidance, ABC):
    """A technique that changes what all weaker predictions of a step add together, as it shows in the predicted clean image."""

    @abstractmethod
    def transform(self, state: "GuidanceState", x_0: Tensor, difference: Tensor) -> Tensor:
        """Return another difference.

        Args:
            state: The step.
            x_0: (N, C, H, W) float32, the clean image predicted without guidance, not clamped.
            difference: (N, C, H, W) float32, what guidance adds to it.
        """


class GuidanceState:
    """One step as the techniques see it: x_t, t, the condition, and the predictions that they share, each made once, on demand.

    The unconditional branch exists where an active technique needs it (classifier-free guidance); elsewhere there is one
    prediction, and both branch names mean it.

    Args:
        denoiser: Who is asked.
        x_t: (N, C, H, W) float32.
        t: The index in the schedule.
        condition: What the denoiser is told.
        active: The techniques that are on.
        capture: Attention layers that the caller wants of the first prediction.
        attend: Replacements for attention that the caller wants in the first prediction.
        random: Where techniques get random numbers.
        memory: What the step before left.
        batched: Whether questions that do not wait for each other are asked in one batch.

    Raises:
        ValueError: If there are two branches, and no condition to leave out.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        x_t: Tensor,
        t: int,
        condition: Condition | None,
        active: Sequence[Guidance],
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
        random: Random | None = None,
        memory: Memory | None = None,
        batched: bool = False,
    ) -> None:
        self.denoiser = denoiser
        self.x_t = x_t
        self.t = t
        check_condition(condition, len(x_t))
        self._two_branches = any(g.needs_uncond for g in active)
        weak = [g for g in active if isinstance(g, WeakGuidance)]
        read: dict[Branch, set[str]] = {"cond": set(capture), "uncond": set()}
        for g in weak:
            read[self._branch(g.branch)].update(g.capture)
        self._questions: dict[Branch, Question] = {"cond": Question(x_t, condition, attend, read["cond"])}
        if self._two_branches:
            self._questions["uncond"] = Question(x_t, _without(condition), None, read["uncond"])
        self._random = random
        self._memory = memory or Memory()
        self._answers: dict[Hashable, Prediction] = {}  # by branch or technique
        self._own: dict[Guidance, Remembered] = {}
        self._within: dict[Hashable, Memory] = {}
        if batched:
            self._ask_batched(weak)

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion of the denoiser."""
        return self.denoiser.diffusion

    @property
    def time(self) -> float:
        """T / T."""
        return float(self.diffusion.schedule.time[self.t])

    def _branch(self, branch: Branch) -> Branch:
        return branch if self._two_branches else "cond"

    def question(self, branch: Branch) -> Question:
        """Return what the denoiser is asked on a branch; a technique may return it as its own, and it is asked once."""
        return self._questions[self._branch(branch)]

    def condition(self, branch: Branch) -> Condition | None:
        """Return the condition of a branch."""
        return self.question(branch).condition

    def prediction(self, branch: Branch) -> Prediction:
        """Return the answer on a branch, with the attention that active techniques read there."""
        branch = self._branch(branch)
        if branch not in self._answers:
            self._ask({branch: self._questions[branch]})
        return self._answers[branch]

    def weak(self, g: WeakGuidance) -> Prediction:
        """Return the weaker prediction of a technique; its question is asked if nobody has asked it yet."""
        if g in self._answers:
            return g.weak(self, self._answers[g])
        question = g.question(self)
        if question is None:
            return g.weak(self, None)
        for branch, asked in self._questions.items():
            if question is asked:
                return g.weak(self, self.prediction(branch))
        self._ask({g: question})
        return g.weak(self, self._answers[g])

    def _ask(self, questions: Mapping[Any, Question]) -> None:
        for who, q in questions.items():
            within = self._memory.within.get(who)
            answer = self.denoiser(q.x_t, self.t, q.condition, capture=q.capture, attend=q.attend, memory=within)
            self._answers[who], self._within[who] = answer, answer.memory

    def _ask_batched(self, weak: Sequence[WeakGuidance]) -> None:
        self._answers.update(ask_together(self.denoiser, self.t, self._questions))
        questions = {g: question for g in weak if (question := g.question(self)) is not None}
        own = {g: q for g, q in questions.items() if not any(q is asked for asked in self._questions.values())}
        self._answers.update(ask_together(self.denoiser, self.t, own))

    def recall(self, g: Guidance) -> Remembered | None:
        """Return what a technique remembered last in this trajectory, and when; None if nothing."""
        return self._memory.own.get(g)

    def remember(self, g: Guidance, tensors: Mapping[str, Tensor]) -> None:
        """Leave tensors for the same technique at later steps, in place of what it remembered before."""
        self._own[g] = Remembered(self.t, tensors)

    @property
    def memory(self) -> Memory:
        """What the next step finds. What belongs to techniques that were off, and to questions not asked, is carried on."""
        return Memory({**self._memory.own, **self._own}, {**self._memory.within, **self._within})

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
