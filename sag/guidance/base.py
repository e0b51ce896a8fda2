"""The base classes of guidance techniques, and the step as techniques see it.

A technique compares a prediction with a weaker one, or adds a score, or changes the sum of what the others add. It has no
state: what it needs at later steps is kept in the memory of the trajectory.
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
"""random(t, (h, w)) -> (N, h, w) float32: random numbers that depend only on the sample and the step."""
Scale = float | Callable[[float], float]
"""A scale, or a function of the time t / T that returns it (see `ScaleSchedule`)."""


class Guidance:
    """One technique: a `WeakGuidance`, a `ScoreGuidance` or a `DifferenceTransform`.

    Args:
        scale: The paper's s, or a function of time that returns it; 0 is off.
        interval: The lowest and the highest time (t / T in [0, 1], see `Schedule.time`) at which the technique is on. Times
            have the same meaning at 25 and at 250 steps.

    Raises:
        ValueError: If the scale is neither a number nor a function, or the interval is not two times in ascending order.
    """

    needs_uncond: ClassVar[bool] = False
    """Whether the technique needs the unconditional prediction. If so, the step has two branches."""

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
        """Return the scale at a time t / T; 0 outside the interval."""
        if not self.interval[0] <= time <= self.interval[1]:
            return 0.0
        return float(self.scale(time)) if callable(self.scale) else self.scale

    def active(self, time: float) -> bool:
        """Return whether the technique does anything at this time."""
        return self.scale_at(time) != 0

    def check(self, denoiser: DenoiserLike) -> None:
        """Check that this technique can guide this denoiser.

        Raises:
            ValueError: If it cannot.
        """


class WeakGuidance(Guidance, ABC):
    """A technique that makes a weaker prediction. Subclasses define `question`.

    Attributes:
        branch: The branch whose prediction is compared with the weaker one.
        capture: The attention layers that the technique reads on that branch.
    """

    branch: Branch = "cond"
    capture: tuple[str, ...] = ()

    @abstractmethod
    def question(self, state: "GuidanceState") -> Question | None:
        """Return the input for which the denoiser makes the weaker prediction, or None if `weak` needs no new prediction.

        Whether this is None may depend only on what the technique remembers. The scale decides when the technique is on.
        """

    def weak(self, state: "GuidanceState", answer: Prediction | None) -> Prediction:
        """Return the weaker prediction: by default, the answer to the question.

        Args:
            state: The step.
            answer: The denoiser's answer to `question`; None if there was no question.
        """
        if answer is None:
            raise NotImplementedError(f"{type(self).__name__} asks no question, so it must define weak")
        return answer


class ScoreGuidance(Guidance, ABC):
    """A technique that adds a score, grad log p(y | x_t). DDPM and DDIM use it differently."""

    @abstractmethod
    def score(self, state: "GuidanceState") -> Tensor:
        """Return the scale times the score, (N, C, H, W) float32."""


class DifferenceTransform(Guidance, ABC):
    """A technique that changes the sum of what the weaker predictions of a step add to the predicted clean image."""

    @abstractmethod
    def transform(self, state: "GuidanceState", x_0: Tensor, difference: Tensor) -> Tensor:
        """Return the new difference, (N, C, H, W) float32.

        Args:
            state: The step.
            x_0: The clean image predicted without guidance, not clamped, (N, C, H, W) float32.
            difference: What guidance adds to x_0, (N, C, H, W) float32.
        """


class GuidanceState:
    """One step as the techniques see it: x_t, t, the condition, and the predictions that they share.

    Each prediction is made once, when it is first needed. There is an unconditional branch if an active technique needs it
    (classifier-free guidance). Otherwise there is one prediction, to which both branch names refer.

    Args:
        denoiser: The denoiser that makes the predictions.
        x_t: (N, C, H, W) float32.
        t: The step, an index of the schedule.
        condition: What the denoiser is told.
        active: The techniques that are on at this step.
        capture: Attention layers to capture in the first prediction, for the caller.
        attend: Replacements for attentions in the first prediction, from the caller.
        random: The source of random numbers for techniques.
        memory: What the previous step passed on.
        batched: Whether questions that do not depend on each other are asked in one batch.

    Raises:
        ValueError: If there are two branches, but no condition to leave out.
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
        """The denoiser's diffusion."""
        return self.denoiser.diffusion

    @property
    def time(self) -> float:
        """The time t / T of this step, in [0, 1]."""
        return float(self.diffusion.schedule.time[self.t])

    def _branch(self, branch: Branch) -> Branch:
        return branch if self._two_branches else "cond"

    def question(self, branch: Branch) -> Question:
        """Return the question of a branch. If a technique returns it as its own question, it is still asked only once."""
        return self._questions[self._branch(branch)]

    def condition(self, branch: Branch) -> Condition | None:
        """Return the condition of a branch."""
        return self.question(branch).condition

    def prediction(self, branch: Branch) -> Prediction:
        """Return the prediction of a branch, with the attentions that active techniques read there."""
        branch = self._branch(branch)
        if branch not in self._answers:
            self._ask({branch: self._questions[branch]})
        return self._answers[branch]

    def weak(self, g: WeakGuidance) -> Prediction:
        """Return the weaker prediction of a technique. Its question is asked unless it was asked before."""
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
        """Return what a technique last remembered in this trajectory; None if nothing."""
        return self._memory.own.get(g)

    def remember(self, g: Guidance, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors for the same technique at later steps. They replace what it stored before."""
        self._own[g] = Remembered(self.t, tensors)

    @property
    def memory(self) -> Memory:
        """What the next step is given. The memory of techniques that were off, and of questions not asked, is kept."""
        return Memory({**self._memory.own, **self._own}, {**self._memory.within, **self._within})

    def random(self, size: tuple[int, int]) -> Tensor:
        """Return random numbers (N, h, w) float32 that depend only on the sample and the step.

        Args:
            size: (h, w).

        Raises:
            ValueError: If the guided denoiser has no source of random numbers.
        """
        if self._random is None:
            raise ValueError("a random mask needs random numbers: pass the argument random to GuidedDenoiser")
        return self._random(self.t, size)


def _without(condition: Condition | None) -> Condition:
    if condition is None or (condition.labels is None and condition.text is None):
        raise ValueError("classifier-free guidance needs labels or text")
    null = condition.null()
    if null is None:
        raise ValueError(f"classifier-free guidance {NEEDS_NULL}")
    return null
