"""Noise schedules: float64 tables with one row per step (arXiv:2006.11239, section 4; arXiv:2102.09672, Eq. 17)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much image and how much noise x_t has at each step: x_t = signal x_0 + noise eps.

    Schedules are usually made by `linear`, `cosine`, `flow` or `from_betas`.

    Args:
        signal: (T,) float64 in [0, 1], falling.
        noise: (T,) float64 in (0, 1], rising.
        tau: (T,) float64, the number that tells the network the step.
        timesteps: (T,) int64, ascending: the training step of each row.
        training_steps: Number of training steps.
        variances: (T,) float64 in (0, 1], the betas of a variance-preserving schedule, from which all its tables follow; None
            for other schedules.
        spacing: The argument of the last `respace`.

    Raises:
        ValueError: If the tables have different lengths, or a step has no noise.
    """

    signal: Table
    noise: Table
    tau: Table
    timesteps: NDArray[np.int64]
    training_steps: int
    variances: Table | None = None
    spacing: str = ""

    def __post_init__(self) -> None:
        lengths = {len(table) for table in (self.signal, self.noise, self.tau, self.timesteps)}
        if len(lengths) != 1:
            raise ValueError(f"the tables of a schedule must be equally long, got lengths {sorted(lengths)}")
        if not (self.noise > 0).all():
            raise ValueError("every step of a schedule needs some noise; leave the clean image out, which is not a step")

    @classmethod
    def from_betas(
        cls, betas: Table, tau: Table, timesteps: NDArray[np.int64], training_steps: int, spacing: str = ""
    ) -> "Schedule":
        """Make a variance-preserving schedule: signal^2 is the product of 1 - beta, and signal^2 + noise^2 = 1.

        Args:
            betas: (T,) float64 in (0, 1].
            tau: See `Schedule`.
            timesteps: See `Schedule`.
            training_steps: Number of training steps.
            spacing: See `Schedule`.
        """
        alpha_bar = np.cumprod(1 - betas, dtype=np.float64)
        return cls(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), tau, timesteps, training_steps, betas, spacing)

    @classmethod
    def linear(cls, steps: int = 1000, rescale_timesteps: bool = False) -> "Schedule":
        """Make the linear schedule of Ho et al. (arXiv:2006.11239, section 4).

        The betas go from 1e-4 to 0.02 at 1000 steps. For other numbers of steps they are scaled to end equally noisy.

        Args:
            steps: Number of training steps.
            rescale_timesteps: Whether tau counts to 1000 for any number of steps (IDDPM).
        """
        scale = 1000 / _positive(steps)
        betas = np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)
        return cls.from_betas(betas, _tau(steps, rescale_timesteps), np.arange(steps), steps)

    @classmethod
    def cosine(cls, steps: int = 1000, rescale_timesteps: bool = False) -> "Schedule":
        """Make the cosine schedule of Nichol and Dhariwal (arXiv:2102.09672, Eq. 17): s = 0.008, betas of at most 0.999.

        Args:
            steps: Number of training steps.
            rescale_timesteps: See `linear`.
        """
        x = np.arange(_positive(steps) + 1) / steps
        alpha_bar = np.cos((x + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
        return cls.from_betas(betas, _tau(steps, rescale_timesteps), np.arange(steps), steps)

    @classmethod
    def flow(cls, steps: int = 1000, tau_scale: float = 1.0) -> "Schedule":
        """Make the straight path of flow matching, signal 1 - t and noise t, from t = 1 / steps to pure noise at t = 1.

        Args:
            steps: Number of rows. A sampler keeps some of them.
            tau_scale: tau is tau_scale * t; use 1000 for a network that counts to 1000.
        """
        timesteps = np.arange(1, _positive(steps) + 1)
        t = timesteps / steps
        return cls(1 - t, t, tau_scale * t, timesteps, steps)

    def respace(self, steps: int | str) -> "Schedule":
        """Keep only some of the steps, with their signal and noise unchanged.

        Respacing a schedule twice with the same argument is the same as once.

        Args:
            steps: 250 or "250" (spread evenly), "ddim25" (a constant integer stride, as in DDIM), or "10,15,20" (that many in
                the first, second and last third).

        Raises:
            ValueError: If `steps` has none of these forms, the schedule has fewer steps, or no integer stride gives them.
        """
        spacing = str(steps).strip()
        if spacing == self.spacing:
            return self
        try:
            keep = _kept(len(self), spacing)
        except ValueError as error:
            earlier = f"; the schedule was already respaced to {self.spacing}" if self.spacing else ""
            raise ValueError(f"{error}{earlier}") from None
        tau, timesteps = self.tau[keep], self.timesteps[keep]
        if self.variances is None:
            return Schedule(self.signal[keep], self.noise[keep], tau, timesteps, self.training_steps, spacing=spacing)
        alpha_bar = self.alpha_bar[keep]
        betas = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
        return Schedule.from_betas(betas, tau, timesteps, self.training_steps, spacing)

    def __len__(self) -> int:
        return len(self.signal)

    @cached_property
    def time(self) -> Table:
        """The time timesteps / training_steps, (T,) in [0, 1]. Its meaning is the same at 25 and at 250 steps."""
        return self.timesteps.astype(np.float64) / self.training_steps

    @cached_property
    def signal_prev(self) -> Table:
        """The signal at t - 1, (T,); 1 before the first step."""
        return np.concatenate([[1.0], self.signal[:-1]])

    @cached_property
    def variance_prev(self) -> Table:
        """noise^2 at t - 1, (T,); 0 before the first step."""
        variance = np.square(self.noise) if self.variances is None else 1 - self.alpha_bar
        return np.concatenate([[0.0], variance[:-1]])

    @cached_property
    def clean_of_noisy(self) -> tuple[Table, Table]:
        """The two factors of x_0 = first * x_t - second * eps, (T,) each; not finite where there is no signal."""
        with np.errstate(divide="ignore"):
            if self.variances is None:
                return 1 / self.signal, self.noise / self.signal
            return np.sqrt(1 / self.alpha_bar), np.sqrt(1 / self.alpha_bar - 1)  # bit-equal to the reference programs

    @property
    def betas(self) -> Table:
        """The variance of the noise that each step adds, (T,) (arXiv:2006.11239, Eq. 1).

        Raises:
            ValueError: If the schedule is not variance-preserving.
        """
        if self.variances is None:
            raise ValueError(
                "only a variance-preserving schedule has betas, and this one is not; DDIM (sampler=ddim) does not need them"
            )
        return self.variances

    @cached_property
    def alpha_bar(self) -> Table:
        """The product of 1 - beta up to each step, (T,) (arXiv:2006.11239, Eq. 4)."""
        return np.cumprod(1 - self.betas, dtype=np.float64)

    @cached_property
    def alpha_bar_prev(self) -> Table:
        """alpha_bar at t - 1, (T,); 1 before the first step."""
        return np.concatenate([[1.0], self.alpha_bar[:-1]])

    @cached_property
    def posterior_variance(self) -> Table:
        """The variance of q(x_{t-1} | x_t, x_0), (T,); 0 at the first step (arXiv:2006.11239, Eq. 7)."""
        if self.variances is None:
            growth = np.square(self.noise) - self.variance_prev * np.square(self.signal / self.signal_prev)
            return growth * self.variance_prev / np.square(self.noise)
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_log_variance(self) -> Table:
        """The logarithm of `posterior_variance`, (T,). The first value would be log 0, so the second replaces it."""
        variance = self.posterior_variance.copy()
        variance[0] = variance[1] if len(variance) > 1 else self.betas[0]
        return np.log(variance)


def _tau(steps: int, rescale_timesteps: bool) -> Table:
    return np.arange(steps).astype(np.float64) * (1000 / steps if rescale_timesteps else 1.0)


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
            f"no integer stride over {total} steps gives exactly {wanted} of them; use steps={wanted} instead of {text!r}"
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
