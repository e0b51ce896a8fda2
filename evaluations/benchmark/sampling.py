"""Seconds per step, memory and arithmetic rate of guided sampling. The guidance methods take turns, step by step."""

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from evaluations.metric import check_count
from sag.devices import PRECISIONS, pick_device, seconds, set_up
from sag.diffusion import Denoiser, Sampler, sample
from sag.guidance import Guidance, GuidedDenoiser
from sag.memory import peak_memory
from sag.models import Classifier, UNet
from sag.noise import SampleNoise

WARM_UP = 2


@dataclass(frozen=True)
class Row:
    """The cost of one list of guidance methods in one precision.

    Attributes:
        guidance: Their names, or "none".
        precision: "float32", "bfloat16" or "float16".
        compiled: Whether the networks are compiled.
        passes_per_step: How often a step asks the network.
        flop_per_step: Floating-point operations of a step.
        peak_memory: Bytes at the peak of a step, weights included; None where the system does not tell.
        seconds_per_step: The median over the rounds.
        time_ratio: `seconds_per_step` divided by that without guidance.
        memory_ratio: `peak_memory` divided by that without guidance.
        images_per_second: For all steps of the sampler.
        flop_per_second: The rate of arithmetic.
        matmul_flop_per_second: The rate of a large matrix product, the most this machine gives in this precision.
        share_of_matmul: The one divided by the other.
    """

    guidance: str
    precision: str
    compiled: bool
    passes_per_step: int
    flop_per_step: int
    peak_memory: int | None
    seconds_per_step: float
    time_ratio: float
    memory_ratio: float | None
    images_per_second: float
    flop_per_second: float
    matmul_flop_per_second: float
    share_of_matmul: float

    def describe(self) -> str:
        """Return a line of the table."""
        peak, memory_ratio = (float("nan") if value is None else value for value in (self.peak_memory, self.memory_ratio))
        return (
            f"{self.guidance:<18}{self.precision:<10}{'yes' if self.compiled else 'no':<9}{self.passes_per_step:>6}"
            f"{self.seconds_per_step:>9.3f}{self.time_ratio:>8.2f}{self.images_per_second:>22.4f}"
            f"{peak / 2**20:>10.0f}{memory_ratio:>8.3f}"
            f"{self.flop_per_second / 1e9:>9.0f}{self.share_of_matmul:>10.0%}"
        )


@dataclass(frozen=True)
class Sampling:
    """What sampling costs.

    Attributes:
        batch_size: How many images are sampled at once.
        rounds: How many steps of each case were timed.
        steps: The steps of the sampler.
        rows: Every combination of guidance, precision and compilation.
    """

    batch_size: int
    rounds: int
    steps: int
    rows: Sequence[Row]

    def describe(self) -> str:
        """Return a table: absolute numbers, and next to them ratios to the same precision without guidance."""
        rate = f"images/s ({self.steps} steps)"
        head = (
            f"{'guidance':<18}{'precision':<10}{'compiled':<9}{'passes':>6}{'s/step':>9}{'x none':>8}{rate:>22}"
            f"{'peak MiB':>10}{'x none':>8}{'GFLOP/s':>9}{'of matmul':>10}"
        )
        return "\n".join([head, *(row.describe() for row in self.rows)])


def benchmark_sampling(
    denoiser: Denoiser,
    guidance: Mapping[str, Guidance],
    sampler: Sampler,
    *,
    helpers: Sequence[UNet | Classifier] = (),
    batch_size: int = 2,
    rounds: int = 3,
    precisions: Sequence[str] | None = None,
    compiled: Sequence[bool] = (False,),
    device: str = "auto",
    progress: bool = False,
) -> Sampling:
    """Measure sampling without guidance, with the first method, with the first two, and so on.

    Example:
        >>> import sag
        >>> from evaluations.benchmark.sampling import benchmark_sampling
        >>> from sag.diffusion import DDPM
        >>> from sag.guidance import SelfAttentionGuidance
        >>> denoiser = sag.build.denoiser(sag.compose("sample", ["model=fashion32", "device=cpu"]))
        >>> methods = {"sag": SelfAttentionGuidance(0.3, "output.2", 1.0)}
        >>> found = benchmark_sampling(denoiser, methods, DDPM(50), precisions=["float32"], device="cpu")
        >>> [(row.guidance, row.passes_per_step) for row in found.rows]
        [('none', 1), ('sag', 2)]

    Args:
        denoiser: The model; random weights do.
        guidance: The guidance methods, by name.
        sampler: The sampler; its steps give images per second.
        helpers: The networks of guidance methods, such as classifiers; they get the device and precision of the model.
        batch_size: How many images are sampled at once.
        rounds: How many steps of each case are timed.
        precisions: "float32", "bfloat16" and "float16"; None is all that the device has.
        compiled: Whether the networks are compiled; both is possible.
        device: "cpu", "cuda", "cuda:N", or "auto".
        progress: Whether to show a progress bar on stderr.

    Returns:
        A row for every combination.

    Raises:
        ValueError: If an argument is out of range, or the device does not have a precision.
    """
    for name, count in {"batch_size": batch_size, "rounds": rounds}.items():
        check_count(name, count)
    where, names, methods = pick_device(device), list(guidance), list(guidance.values())
    chosen = list(precisions or [name for name in PRECISIONS if name != "float16" or where.type == "cuda"])
    for precision in chosen:
        pick_device(device, precision)
    cases = {" + ".join(names[:n]) or "none": methods[:n] for n in range(len(names) + 1)}
    steps = len(sampler.respace(denoiser).diffusion.schedule)
    rows: list[Row] = []
    flop: dict[str, int] = {}
    combinations = [(precision, each) for each in sorted(set(compiled)) for precision in chosen]
    for precision, each in tqdm(combinations, unit="combination", leave=False, disable=not progress):
        for network in (denoiser.network, *helpers):
            set_up(network, where, precision, each)
        peak_rate = _matmul_rate(where, precision)
        found = _measure(denoiser, cases, sampler, batch_size, rounds, where)
        base = found["none"]
        for name, cost in found.items():
            operations = flop.setdefault(name, cost.flop)  # compiled code cannot be counted, and does the same
            rate = operations / cost.seconds
            rows.append(
                Row(
                    name,
                    precision,
                    each,
                    cost.passes,
                    operations,
                    cost.memory,
                    cost.seconds,
                    time_ratio=cost.seconds / base.seconds,
                    memory_ratio=cost.memory / base.memory if cost.memory and base.memory else None,
                    images_per_second=batch_size / (cost.seconds * steps),
                    flop_per_second=rate,
                    matmul_flop_per_second=peak_rate,
                    share_of_matmul=rate / peak_rate,
                )
            )
    return Sampling(batch_size, rounds, steps, rows)


def _matmul_rate(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of a large square matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(PRECISIONS[precision]) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(6))


class _NoModules(contextlib.nullcontext[None]):
    """Stands in for the counter's module tracker: everything counts as one module."""

    parents = frozenset({"Global"})


@dataclass(frozen=True)
class _Cost:
    """What a step costs."""

    passes: int
    flop: int
    memory: int | None
    seconds: float = float("nan")


def _measure(
    denoiser: Denoiser,
    cases: Mapping[str, Sequence[Guidance]],
    sampler: Sampler,
    batch_size: int,
    rounds: int,
    device: torch.device,
) -> dict[str, _Cost]:
    """Measure each case in the present precision; the time is the median."""
    network = denoiser.network
    noise = SampleNoise(0, range(batch_size), denoiser.shape, device)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    low_res = noise.initial()[:, :, ::4, ::4] if network.image_channels != network.in_channels else None
    condition = denoiser.condition(labels, low_res)
    timed = replace(sampler, steps=WARM_UP + 2 + rounds)
    iterators, costs = {}, {}
    for name, methods in cases.items():
        guided = GuidedDenoiser(denoiser, methods, noise.mask)
        iterators[name] = sample(guided, timed, noise.initial(), condition, noise=noise.step)
        for _ in range(WARM_UP):
            next(iterators[name])
        counter = FlopCounterMode(display=False)
        # the tracker's hooks cannot follow a gradient with respect to the network's input
        counter.mod_tracker = _NoModules()  # type: ignore[assignment]
        with counter:
            next(iterators[name])
        costs[name] = _Cost(guided.passes(0), counter.get_total_flops(), peak_memory(iterators[name].__next__, device))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, iterator in iterators.items():
            times[name].append(seconds(iterator.__next__, device))
    return {name: replace(cost, seconds=statistics.median(times[name])) for name, cost in costs.items()}
