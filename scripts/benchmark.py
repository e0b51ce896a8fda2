"""Measure guided sampling with random weights or, by part, evaluation or processes: python scripts/benchmark.py model=..."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from sag.storage import LocalFolder, settings_hash
from scripts.common import run

if TYPE_CHECKING:
    from evaluations.benchmark.sampling import Sampling


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


def main(cfg: DictConfig) -> None:
    """Measure the part asked for, print the result, and write a JSON into `out`."""
    # these import torch, which --help does without; the evaluation's memory is free of what the other parts import
    from evaluations.benchmark.record import ResultFile, machine
    from sag.devices import pick_device

    if cfg.part not in ("sampling", "evaluation", "cluster", "processor"):
        raise ValueError(f"part must be sampling, evaluation, cluster or processor, got {cfg.part!r}")
    if cfg.batch_size < 1 or cfg.rounds < 1 or not cfg.samples or min(cfg.samples) < 10:
        raise ValueError(
            f"batch_size and rounds must be at least 1, samples at least 10; got {cfg.batch_size}, {cfg.rounds}, {cfg.samples}"
        )
    device = pick_device(cfg.device)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    key = settings_hash({name: value for name, value in settings.items() if name != "out"})
    name = cfg.model.name if cfg.part == "sampling" else cfg.part
    file = ResultFile(LocalFolder(Path(cfg.out or f"outputs/benchmark/{name}-{key[:8]}")), f"{name}.json", key)
    file.check()
    print("{}, {device}, {threads} threads, torch {torch}".format(name, **machine(device)))
    if cfg.part == "sampling":
        sampling = measure_sampling(cfg)
        print(sampling.describe())
        facts = {"model": cfg.model.name, **asdict(sampling)}
    elif cfg.part == "evaluation":
        from evaluations.benchmark.evaluation import benchmark_evaluation

        samples, shown = list(cfg.samples), lambda measured: print(measured.describe(), flush=True)
        facts = asdict(benchmark_evaluation(samples, batch_size=cfg.batch_size, device=cfg.device, watch=shown))
    elif cfg.part == "processor":
        from evaluations.benchmark.processor import benchmark_processor

        cost = benchmark_processor(cfg.batch_size, cfg.rounds, device=cfg.device)
        print(cost.describe())
        facts = asdict(cost)
    else:
        from evaluations.benchmark.cluster import benchmark_cluster

        cluster = benchmark_cluster(Path(__file__).with_name("sample.py"), cfg.samples[0])
        print(cluster.describe())
        facts = asdict(cluster)
    file.write(facts, device)
    print(f"wrote {file.folder}/{file.name}")


def measure_sampling(cfg: DictConfig) -> "Sampling":
    """Measure the model and the guidance methods of the config with random weights."""
    import torch

    import sag
    from evaluations.benchmark.sampling import benchmark_sampling

    def random_network(node: DictConfig) -> Any:
        networks.append(instantiate(node.network, _convert_="all").eval().requires_grad_(False))
        return networks[-1]

    networks: list[Any] = []
    torch.manual_seed(0)
    denoiser = sag.build.outline(cfg.model)
    names = [name for name in cfg.guidance if name != "classifier" or cfg.classifier is not None]
    if len(names) < len(cfg.guidance):
        print(f"{cfg.model.name} comes with no classifier: classifier guidance is left out")
    methods = sag.build.guidance({name: cfg.guidance[name] for name in names}, random_network)
    return benchmark_sampling(
        denoiser,
        dict(zip(names, methods, strict=True)),
        instantiate(cfg.sampler),
        helpers=networks,
        batch_size=cfg.batch_size,
        rounds=cfg.rounds,
        precisions=cfg.precisions,
        compiled=cfg.compile,
        device=cfg.device,
        progress=True,
    )


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "benchmark", BenchmarkConfig)


if __name__ == "__main__":
    command()
