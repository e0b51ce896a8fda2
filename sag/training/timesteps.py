"""Which steps of the diffusion are trained, and how much each counts (arXiv:2102.09672, section 3.3)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class TimestepSampler(ABC):
    """Draws steps t in [0, steps) from torch's default generator, with weights that keep the expected loss of uniform t."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @abstractmethod
    def probabilities(self) -> Tensor:
        """How likely each step is, (steps,) float64."""

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Steps (count,) int64 and their weights (count,) float32."""
        p = self.probabilities()
        t = torch.multinomial(p, count, replacement=True)
        return t, (1 / (self.steps * p[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from the losses (n,) of steps t (n,), of all processes."""

    def state(self) -> dict[str, Tensor]:
        """What `load` needs to go on."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""


class Uniform(TimestepSampler):
    """All steps alike."""

    def probabilities(self) -> Tensor:
        """See `TimestepSampler.probabilities`."""
        return torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)


class LossSecondMoment(TimestepSampler):
    """Steps in proportion to sqrt(E[loss^2]) over the last `history` losses of each; uniform until all have so many.

    floor: the share of probability that stays uniform.
    """

    def __init__(self, steps: int, history: int = 10, floor: float = 0.001) -> None:
        super().__init__(steps)
        self.floor = floor
        self._losses = torch.zeros(steps, history, dtype=torch.float64)
        self._counts = torch.zeros(steps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """See `TimestepSampler.probabilities`."""
        uniform = torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)
        if int(self._counts.min()) < self._losses.shape[1]:
            return uniform
        moment = self._losses.square().mean(1).sqrt()
        return (1 - self.floor) * moment / moment.sum() + self.floor * uniform

    def update(self, t: Tensor, losses: Tensor) -> None:
        """See `TimestepSampler.update`."""
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            self._losses[step, int(self._counts[step]) % self._losses.shape[1]] = loss
            self._counts[step] += 1

    def state(self) -> dict[str, Tensor]:
        """See `TimestepSampler.state`."""
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """See `TimestepSampler.load`."""
        self._losses.copy_(state["losses"])
        self._counts.copy_(state["counts"])
