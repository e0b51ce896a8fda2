"""What rows cost before they are run: counted arithmetic, divided by a rate that is measured here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

import sag
from evaluations.metrics import COLUMNS
from evaluations.study.rows import Row
from sag.build.configs import Config, instantiate
from sag.devices import device_name, pick_device, seconds, set_up
from sag.guidance import ClassifierGuidance, GuidedDenoiser
from sag.models import Network

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
    if not rows:
        raise ValueError("there are no rows to plan")
    where = pick_device(device, rows[0].cfg.precision)
    rate = _rate(rows[0].cfg, where)
    return Plan([_cost(row, rate) for row in rows], f"{where} ({device_name(where)})", rate)


def _published(facts: Config | None) -> str:
    if facts is None:
        return "-"
    values = ", ".join(f"{COLUMNS[name]} {value:g}" for name, value in facts["values"].items())
    mark = ", secondhand" if facts.get("secondhand") else ""
    return f"{values} (N = {facts.num_samples}, {facts.source}{mark})"


def _cost(row: Row, flop_per_second: float) -> Cost:
    cfg = row.cfg
    with torch.device("meta"):
        denoiser = sag.build.outline(cfg.model)
        guidance = sag.build.guidance(cfg.guidance, lambda node: instantiate(node.network, _convert_="all"))
    guided = GuidedDenoiser(instantiate(cfg.sampler).respace(denoiser), guidance)
    steps = len(guided.diffusion.schedule)
    size = denoiser.sample_size(cfg.size)
    passes = sum(guided.passes(t, (denoiser.shape[0], *size)) for t in range(steps))
    inputs = _inputs(denoiser.network, size, 1, torch.device("meta"))
    flop = passes * _forward_flop(denoiser.network, inputs)
    for g in guidance:
        if isinstance(g, ClassifierGuidance):
            flop += GRADIENT * steps * _forward_flop(g.classifier, inputs[:2])
    height, width = (length * (1 if denoiser.autoencoder is None else denoiser.autoencoder.factor) for length in size)
    disk = 2 * cfg.num_samples * 3 * height * width * cfg.bits // 8  # shards and npz
    return Cost(row, passes, flop * cfg.num_samples / flop_per_second / 3600, disk / 1e9)


def _forward_flop(network: Any, inputs: Sequence[torch.Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return int(counter.get_total_flops())


def _inputs(network: Network, size: tuple[int, int], batch: int, device: torch.device) -> list[torch.Tensor]:
    x_t = torch.zeros(batch, network.image_channels, *size, device=device)
    labels = [] if network.num_classes is None else [torch.zeros(batch, dtype=torch.int64, device=device)]
    return [x_t, torch.zeros(batch, device=device), *labels]


def _rate(cfg: Config, device: torch.device) -> float:
    """FLOP/s of a row's network in a forward pass with its batch size (on a CPU a smaller one, where that is slow)."""
    denoiser = sag.build.outline(cfg.model)
    network, size = denoiser.network, denoiser.sample_size(cfg.size)
    with torch.device("meta"):
        outline = sag.build.outline(cfg.model).network
    flop = _forward_flop(outline, _inputs(outline, size, 1, torch.device("meta")))
    set_up(network, device, cfg.precision, cfg.compile)
    batch: int = cfg.batch_size if device.type == "cuda" else min(cfg.batch_size, max(4, int(CPU_BATCH_FLOP // flop)))
    inputs = _inputs(network, size, batch, device)
    with torch.no_grad():
        network(*inputs)
        return batch * flop / min(seconds(lambda: network(*inputs), device) for _ in range(2))
