"""Noise schedules: float64 tables with one row per kept step (arXiv:2006.11239, section 4; arXiv:2102.09672, Eq. 17)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The variances of the kept steps, and which training steps they are.

    betas: (T,) float64 in (0, 1]; timesteps: (T,) int64, ascending, in [0, training_steps).
    rescale_timesteps: whether the network was told tau on a scale of 1000 steps whatever training_steps is (IDDPM).
    """

    betas: Table
    timesteps: NDArray[np.int64]
    training_steps: int
    rescale_timesteps: bool = False

    @classmethod
    def linear(cls, steps: int = 1000, rescale_timesteps: bool = False) -> "Schedule":
        """Ho et al.'s linear betas, 1e-4 to 0.02 at 1000 steps and scaled to end equally noisy at any other number."""
        scale = 1000 / _positive(steps)
        return cls(np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64), np.arange(steps), steps, rescale_timesteps)

    @classmethod
    def cosine(cls, steps: int = 1000, rescale_timesteps: bool = False) -> "Schedule":
        """Nichol and Dhariwal's cosine alpha_bar with s = 0.008 and betas of at most 0.999."""
        x = np.arange(_positive(steps) + 1) / steps
        alpha_bar = np.cos((x + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
        return cls(betas, np.arange(steps), steps, rescale_timesteps)

    def respace(self, steps: int | str) -> "Schedule":
        """Keep fewer steps, with betas that give the kept steps their old alpha_bar.

        steps: 250 or "250" (evenly spread over all), "ddim25" (a fixed whole stride, as DDIM does), or "10,15,20"
        (that many in the first, second, last third).

        Raises:
            ValueError: more steps than there are, no whole stride that gives them, or not one of these forms.
        """
        keep = _kept(len(self.betas), str(steps).strip())
        alpha_bar = self.alpha_bar[keep]
        betas = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
        return Schedule(betas, self.timesteps[keep], self.training_steps, self.rescale_timesteps)

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def tau(self) -> Table:
        """(T,) what the network is told of each step."""
        scale = 1000 / self.training_steps if self.rescale_timesteps else 1.0
        return self.timesteps.astype(np.float64) * scale

    @cached_property
    def noise_level(self) -> Table:
        """(T,) timesteps / training_steps, in [0, 1): the same at 25 and at 250 steps."""
        return self.timesteps.astype(np.float64) / self.training_steps

    @cached_property
    def alpha_bar(self) -> Table:
        """(T,) the product of 1 - beta up to each step (arXiv:2006.11239, Eq. 4)."""
        return np.cumprod(1 - self.betas, dtype=np.float64)

    @cached_property
    def alpha_bar_prev(self) -> Table:
        """(T,) alpha_bar one step earlier; 1 before the first."""
        return np.concatenate([[1.0], self.alpha_bar[:-1]])

    @cached_property
    def posterior_variance(self) -> Table:
        """(T,) the variance of q(x_{t-1} | x_t, x_0), 0 at the first step (arXiv:2006.11239, Eq. 7)."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_log_variance(self) -> Table:
        """(T,) its logarithm, with the second value in place of the first, which is log 0."""
        variance = self.posterior_variance.copy()
        variance[0] = variance[1] if len(variance) > 1 else self.betas[0]
        return np.log(variance)


def _positive(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"a schedule needs at least 1 step, got {steps}")
    return steps


def _kept(total: int, text: str) -> NDArray[np.int64]:
    if text.startswith("ddim") and text[4:].isdigit():
        wanted = int(text[4:])
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == wanted:
                return np.arange(0, total, stride)
        raise ValueError(
            f"no whole stride over {total} training steps gives exactly {wanted} steps; use steps={wanted} instead of {text!r}"
        )
    if not text or not all(part.strip().isdigit() and int(part) > 0 for part in text.split(",")):
        raise ValueError(f"steps must look like 250, ddim25 or 10,15,20, got {text!r}")
    counts = [int(part) for part in text.split(",")]
    sizes = [total // len(counts) + (i < total % len(counts)) for i in range(len(counts))]
    kept: list[int] = []
    start = 0
    for count, size in zip(counts, sizes, strict=True):
        if count > size:
            raise ValueError(f"cannot keep {count} of {size} training steps (steps={text}, {total} in all)")
        gap = 1.0 if count == 1 else (size - 1) / (count - 1)
        kept += [start + round(i * gap) for i in range(count)]
        start += size
    return np.array(kept, dtype=np.int64)
