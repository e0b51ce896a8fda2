"""Samplers of the diffusion steps to train, and the weights of their losses (arXiv:2102.09672, section 3.3)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override


class TimestepSampler(ABC):
    """Draws diffusion steps with torch's default generator. The weights keep the expected loss of uniform steps.

    Args:
        steps: Number of steps of the diffusion.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @abstractmethod
    def probabilities(self) -> Tensor:
        """Return the probability of each step, (steps,) float64."""

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw `count` steps in [0, steps), int64, and return them with their weights, float32."""
        p = self.probabilities()
        t = torch.multinomial(p, count, replacement=True)
        return t, (1 / (self.steps * p[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from losses.

        Args:
            t: Steps of all processes, (n,).
            losses: Their losses, (n,).
        """

    def state(self) -> dict[str, Tensor]:
        """Return what `load` needs to continue."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""


class Uniform(TimestepSampler):
    """Draws all steps with the same probability."""

    @override
    def probabilities(self) -> Tensor:
        return torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)


class LossSecondMoment(TimestepSampler):
    """Draws steps in proportion to sqrt(E[loss^2]), estimated from the last losses of each step.

    Args:
        steps: Number of steps of the diffusion.
        history: Number of losses kept per step. Until every step has that many, steps are drawn uniformly.
        floor: The share of the probability that stays uniform.
    """

    def __init__(self, steps: int, history: int = 10, floor: float = 0.001) -> None:
        super().__init__(steps)
        self.floor = floor
        self._losses = torch.zeros(steps, history, dtype=torch.float64)
        self._counts = torch.zeros(steps, dtype=torch.int64)

    @override
    def probabilities(self) -> Tensor:
        uniform = torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)
        if int(self._counts.min()) < self._losses.shape[1]:
            return uniform
        moment = self._losses.square().mean(1).sqrt()
        return (1 - self.floor) * moment / moment.sum() + self.floor * uniform

    @override
    def update(self, t: Tensor, losses: Tensor) -> None:
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            self._losses[step, int(self._counts[step]) % self._losses.shape[1]] = loss
            self._counts[step] += 1

    @override
    def state(self) -> dict[str, Tensor]:
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    @override
    def load(self, state: dict[str, Tensor]) -> None:
        self._losses.copy_(state["losses"])
        self._counts.copy_(state["counts"])
