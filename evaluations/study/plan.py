"""What rows cost before they are run: counted arithmetic, divided by a rate that is measured here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

import sag
from evaluations.metrics import COLUMNS
from evaluations.study.rows import Row
from sag.devices import device_name, pick_device, seconds, set_up
from sag.diffusion import Denoiser
from sag.guidance import ClassifierGuidance, GuidedDenoiser
from sag.models import UNet, image_size

GRADIENT = 3  # a forward and a backward pass, in forward passes
CPU_BATCH_FLOP = 2.5e11  # on a CPU the timed batch takes this much, or is 4: seconds, not minutes


@dataclass(frozen=True)
class Cost:
    """What a row costs.

    Attributes:
        row: The row.
        passes: The passes of the network for each sample.
        hours: Of sampling, without scoring.
        gigabytes: On the disk, while the samples are packed.
    """

    row: Row
    passes: int
    hours: float
    gigabytes: float


@dataclass(frozen=True)
class Plan:
    """What rows cost on a device.

    Attributes:
        costs: The cost of each row.
        device: Where they would be sampled.
        flop_per_second: How fast the network of the first row is there.
    """

    costs: list[Cost]
    device: str
    flop_per_second: float

    @property
    def hours(self) -> float:
        """The hours of all rows."""
        return sum(cost.hours for cost in self.costs)

    def table(self) -> pd.DataFrame:
        """Return a line for each row, with what is published."""
        lines = [
            {
                "row": cost.row.name,
                "seed": cost.row.cfg.seed,
                "samples": cost.row.cfg.num_samples,
                "passes": cost.passes,
                "hours": cost.hours,
                "GB": cost.gigabytes,
                "published": _published(cost.row.cfg.published),
            }
            for cost in self.costs
        ]
        return pd.DataFrame(lines)


def plan(rows: Sequence[Row], device: str = "auto") -> Plan:
    """Count what rows cost, and measure how fast this device is.

    Example:
        >>> from evaluations.study.plan import plan
        >>> from evaluations.study.rows import table_rows
        >>> planned = plan(table_rows("fashion", ["no guidance", "SAG"], common=["sampler.steps=50", "batch_size=4"]), "cpu")
        >>> [cost.passes for cost in planned.costs], planned.costs[1].hours > planned.costs[0].hours
        ([50, 100], True)

    Args:
        rows: One or more rows.
        device: "cpu", "cuda", "cuda:N", or "auto".

    Returns:
        The costs.

    Raises:
        ValueError: If there is no such device.
    """
    where = pick_device(device, rows[0].cfg.precision)
    rate = _rate(rows[0].cfg, where)
    costs = []
    for row in rows:
        pixels = row.cfg.model.network.image_size**2
        disk = 2 * row.cfg.num_samples * pixels * 3 / 1e9  # shards and npz
        costs.append(Cost(row, _passes(row.cfg), _flop(row.cfg) / rate / 3600, disk))
    return Plan(costs, f"{where} ({device_name(where)})", rate)


def _published(facts: DictConfig | None) -> str:
    if facts is None:
        return "-"
    values = ", ".join(f"{COLUMNS[name]} {value:g}" for name, value in facts["values"].items())
    mark = "" if facts.mark == "S" else ", secondhand"
    return f"{values} (N = {facts.num_samples}, {facts.source}{mark})"


def _guided(cfg: DictConfig) -> tuple[UNet, GuidedDenoiser]:
    """The network and the guided denoiser of a row, without any numbers in them."""
    with torch.device("meta"):
        network = instantiate(cfg.model.network, _convert_="all")
        guidance = sag.build.guidance(cfg.guidance, lambda node: instantiate(node.network, _convert_="all"))
    diffusion = instantiate(cfg.model.diffusion).respace(instantiate(cfg.sampler).steps)
    return network, GuidedDenoiser(Denoiser(network, diffusion, cfg.model.null_label), guidance)


def _passes(cfg: DictConfig) -> int:
    """Of the network, for each sample."""
    network, guided = _guided(cfg)
    shape = (network.image_channels, *image_size(network, cfg.size))
    return sum(guided.passes(t, shape) for t in range(len(guided.diffusion.schedule)))


def _flop(cfg: DictConfig) -> float:
    """Of all samples of a row."""
    network, guided = _guided(cfg)
    total = _passes(cfg) * _forward_flop(network, _inputs(network, 1, torch.device("meta")))
    for g in guided.guidance:
        if isinstance(g, ClassifierGuidance):
            gradient = GRADIENT * _forward_flop(g.classifier, _inputs(network, 1, torch.device("meta"))[:2])
            total += gradient * len(guided.diffusion.schedule)
    return float(total * cfg.num_samples)


def _forward_flop(network: Any, inputs: Sequence[torch.Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return int(counter.get_total_flops())


def _inputs(network: UNet, batch: int, device: torch.device) -> list[torch.Tensor]:
    x_t = torch.zeros(batch, network.image_channels, network.image_size, network.image_size, device=device)
    labels = [] if network.num_classes is None else [torch.zeros(batch, dtype=torch.int64, device=device)]
    return [x_t, torch.zeros(batch, device=device), *labels]


def _rate(cfg: DictConfig, device: torch.device) -> float:
    """FLOP/s of the row's network in a forward pass with its batch size (on a CPU a smaller one, where that is slow)."""
    network = instantiate(cfg.model.network, _convert_="all").eval().requires_grad_(False)
    meta, _ = _guided(cfg)
    flop = _forward_flop(meta, _inputs(meta, 1, torch.device("meta")))
    set_up(network, device, cfg.precision, cfg.compile)
    batch: int = cfg.batch_size if device.type == "cuda" else min(cfg.batch_size, max(4, int(CPU_BATCH_FLOP // flop)))
    inputs = _inputs(network, batch, device)
    with torch.no_grad():
        network(*inputs)
        return batch * flop / min(seconds(lambda: network(*inputs), device) for _ in range(2))
