"""Measure seconds per step, memory and arithmetic rate of guided sampling, with random weights; or, by part, the evaluation.

All comparisons are within one run: the cases of sampling take turns, step by step.
"""

import contextlib
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from tqdm import tqdm

from sag import storage
from sag.build.objects import guidance as build_guidance
from sag.devices import PRECISIONS, device_name, pick_device, seconds, set_up
from sag.diffusion import Denoiser, sample
from sag.guidance import Guidance, GuidedDenoiser
from sag.memory import peak_memory
from sag.noise import SampleNoise
from scripts.benchmark_cluster import benchmark_cluster, lines
from scripts.benchmark_evaluation import benchmark_evaluation
from scripts.common import run

WARM_UP = 2


@dataclass
class BenchmarkConfig:
    """The keys of configs/benchmark.yaml and their types; the values are there."""

    part: str = MISSING
    model: Any = MISSING
    classifier: Any = None
    sampler: Any = MISSING
    guidance: dict[str, Any] = field(default_factory=dict)
    batch_size: int = MISSING
    rounds: int = MISSING
    samples: list[int] = MISSING
    precisions: list[str] | None = None
    compile: list[bool] = MISSING
    device: str = MISSING
    out: str | None = None


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large square matrix product: the most this machine gives in this precision."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(PRECISIONS[precision]) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(6))


class _NoModules(contextlib.nullcontext[None]):
    """Stands in for the counter's module tracker: everything counts as one module."""

    parents = frozenset({"Global"})


def measure(cfg: DictConfig, network: Any, cases: dict[str, list[Guidance]], device: torch.device) -> dict[str, dict[str, Any]]:
    """For each case: seconds per step (the median), peak memory, FLOP per step and passes."""
    from torch.utils.flop_counter import FlopCounterMode  # here, as it takes 70 MB that the evaluation's memory is free of

    shape = (network.image_channels, network.image_size, network.image_size)
    noise = SampleNoise(0, range(cfg.batch_size), shape, device)
    labels = torch.zeros(cfg.batch_size, dtype=torch.int64, device=device)
    low_res = noise.initial()[:, :, ::4, ::4] if network.image_channels != network.in_channels else None
    diffusion = instantiate(cfg.model.diffusion)
    sampler = instantiate(cfg.sampler, steps=WARM_UP + 2 + cfg.rounds)

    denoiser = Denoiser(network, diffusion, cfg.model.null_label)
    condition = denoiser.condition(labels, low_res)
    iterators, rows = {}, {}
    for name, techniques in cases.items():
        guided = GuidedDenoiser(denoiser, techniques, noise.mask)
        iterators[name] = sample(guided, sampler, noise.initial(), condition, noise=noise.step)
        for _ in range(WARM_UP):
            next(iterators[name])
        counter = FlopCounterMode(display=False)
        # the tracker's hooks cannot follow a gradient with respect to the network's input
        counter.mod_tracker = _NoModules()  # type: ignore[assignment]
        with counter:
            next(iterators[name])
        rows[name] = {
            "passes_per_step": guided.passes(0),
            "flop_per_step": counter.get_total_flops(),
            "peak_memory": peak_memory(iterators[name].__next__, device),
        }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(cfg.rounds):
        for name, iterator in iterators.items():
            times[name].append(seconds(iterator.__next__, device))
    return {name: {**row, "seconds_per_step": statistics.median(times[name])} for name, row in rows.items()}


def derived(row: dict[str, Any], base: dict[str, Any], batch_size: int, steps: int, peak_rate: float) -> dict[str, Any]:
    """Rates, and ratios to `base`, the same without guidance."""
    per_second = row["flop_per_step"] / row["seconds_per_step"]
    return {
        "time_ratio": row["seconds_per_step"] / base["seconds_per_step"],
        "memory_ratio": row["peak_memory"] and row["peak_memory"] / base["peak_memory"],
        "images_per_second": batch_size / (row["seconds_per_step"] * steps),
        "flop_per_second": per_second,
        "matmul_flop_per_second": peak_rate,
        "share_of_matmul": per_second / peak_rate,
    }


def table(rows: list[dict[str, Any]], steps: int) -> str:
    """The rows as text: absolute numbers, and each beside the same precision without guidance."""
    rate = f"images/s ({steps} steps)"
    lines = [
        f"{'guidance':<18}{'precision':<10}{'compiled':<9}{'passes':>6}{'s/step':>9}{'x none':>8}{rate:>22}"
        f"{'peak MiB':>10}{'x none':>8}{'GFLOP/s':>9}{'of matmul':>10}"
    ]
    for row in rows:
        peak, memory_ratio = (row[key] or float("nan") for key in ("peak_memory", "memory_ratio"))
        lines.append(
            f"{row['guidance']:<18}{row['precision']:<10}{'yes' if row['compiled'] else 'no':<9}{row['passes_per_step']:>6}"
            f"{row['seconds_per_step']:>9.3f}{row['time_ratio']:>8.2f}{row['images_per_second']:>22.4f}"
            f"{peak / 2**20:>10.0f}{memory_ratio:>8.3f}"
            f"{row['flop_per_second'] / 1e9:>9.0f}{row['share_of_matmul']:>10.0%}"
        )
    return "\n".join(lines)


def main(cfg: DictConfig) -> None:
    """Measure the part asked for, print a table, and write a JSON into `out`."""
    if cfg.part not in ("sampling", "evaluation", "cluster"):
        raise ValueError(f"part must be sampling, evaluation or cluster, got {cfg.part!r}")
    if cfg.batch_size < 1 or cfg.rounds < 1 or not cfg.samples or min(cfg.samples) < 10:
        raise ValueError(
            f"batch_size and rounds must be at least 1, samples at least 10; got {cfg.batch_size}, {cfg.rounds}, {cfg.samples}"
        )
    device = pick_device(cfg.device, "float32")
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = {key: value for key, value in settings.items() if key != "out"}
    key = storage.settings_hash(settings)
    name = cfg.model.name if cfg.part == "sampling" else cfg.part
    folder = storage.LocalFolder(Path(cfg.out or f"outputs/benchmark/{name}-{key[:8]}"))
    check_earlier(folder, f"{name}.json", key)
    print(f"{name}, {device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if cfg.part == "sampling":
        facts = benchmark_sampling(cfg, device)
    elif cfg.part == "evaluation":
        facts = benchmark_evaluation(list(cfg.samples), cfg.batch_size, device)
    else:
        facts = benchmark_cluster(cfg.samples[0])
        print("\n".join(lines(facts)))
    machine = {"device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    check_earlier(folder, f"{name}.json", key)
    folder.write(f"{name}.json", json.dumps(facts | machine | {"settings": key}, indent=1).encode())
    print(f"wrote {folder}/{name}.json")


def check_earlier(folder: storage.Folder, name: str, key: str) -> None:
    """Raise a ValueError if a file has this name and holds something else than earlier measurements with these settings."""
    try:
        own = [name] if json.loads(folder.read(name))["settings"] == key else []
    except (OSError, ValueError, LookupError, TypeError):
        own = []
    storage.refuse_foreign(folder, [name], own)


def benchmark_sampling(cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """Measure every combination of guidance, precision and compilation, and print a table."""
    precisions = list(cfg.precisions or [p for p in PRECISIONS if p != "float16" or device.type == "cuda"])
    for precision in precisions:
        pick_device(cfg.device, precision)
    torch.manual_seed(0)
    network = instantiate(cfg.model.network, _convert_="all").eval().requires_grad_(False)
    names = [name for name in cfg.guidance if name != "classifier" or cfg.classifier is not None]
    if len(names) < len(cfg.guidance):
        print(f"{cfg.model.name} comes with no classifier: classifier guidance is left out")
    helpers = []

    def random_network(node: DictConfig) -> Any:
        helpers.append(instantiate(node.network, _convert_="all").eval().requires_grad_(False))
        return helpers[-1]

    techniques = build_guidance({name: cfg.guidance[name] for name in names}, random_network)
    cases = {" + ".join(names[:n]) or "none": techniques[:n] for n in range(len(names) + 1)}
    steps = len(instantiate(cfg.model.diffusion).respace(cfg.sampler.steps).schedule)
    rows: list[dict[str, Any]] = []
    flop: dict[str, int] = {}
    combinations = [(precision, compiled) for compiled in sorted(set(cfg.compile)) for precision in precisions]
    for precision, compiled in tqdm(combinations, unit="combination", leave=False):
        for each in [network, *helpers]:
            set_up(each, device, precision, compiled)
        peak_rate = matmul_rate(device, precision)
        found = measure(cfg, network, cases, device)
        for name, row in found.items():
            # compiled code cannot be counted, and does the same
            row["flop_per_step"] = flop.setdefault(name, row["flop_per_step"])
            settings = {"guidance": name, "precision": precision, "compiled": compiled}
            rows.append(settings | row | derived(row, found["none"], cfg.batch_size, steps, peak_rate))
    print(table(rows, steps))
    return {"model": cfg.model.name, "batch_size": cfg.batch_size, "rounds": cfg.rounds, "rows": rows}


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "benchmark", BenchmarkConfig)


if __name__ == "__main__":
    command()
