"""What rows cost before they are run: counted arithmetic, divided by a rate that is measured here."""

from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from sag.build.objects import guidance as build_guidance
from sag.build.objects import image_size, set_up
from sag.devices import device_name, pick_device, seconds
from sag.diffusion import Denoiser
from sag.guidance import ClassifierGuidance, GuidedDenoiser
from sag.models import UNet
from scripts.rows import COLUMNS, Row

GRADIENT = 3  # a forward and a backward pass, in forward passes
CPU_BATCH_FLOP = 2.5e11  # on a CPU the timed batch takes this much, or is 4: seconds, not minutes


def plan(rows: Sequence[Row], device: str) -> str:
    """A line for each row: what is published, and hours and disk on this device."""
    where = pick_device(device, rows[0].cfg.precision)
    rate = _rate(rows[0].cfg, where)
    width = max(len(row.name) for row in rows)
    lines = [f"{'row':<{width}}  {'seed':>4} {'samples':>7} {'passes':>9} {'hours':>9} {'GB':>6}  published"]
    hours = 0.0
    for row in rows:
        cost = _flop(row.cfg) / rate / 3600
        hours += cost
        size = row.cfg.model.network.image_size
        disk = 2 * row.cfg.num_samples * size**2 * 3 / 1e9  # shards and npz, while it is packed
        lines.append(
            f"{row.name:<{width}}  {row.cfg.seed:>4} {row.cfg.num_samples:>7} {_passes(row.cfg):>9} {cost:>9.1f} {disk:>6.1f}"
            f"  {_published(row.cfg.published)}"
        )
    first = rows[0].cfg
    lines.append(
        f"{hours:.1f} hours on one {where} ({device_name(where)}), at {rate / 1e12:.3f} TFLOP/s measured on {first.model.name} "
        f"({first.precision}{', compiled' if first.compile else ''}, random weights), without scoring"
    )
    return "\n".join(lines)


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
        guidance = build_guidance(cfg.guidance, lambda node: instantiate(node.network, _convert_="all"))
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
    return counter.get_total_flops()


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
    batch = cfg.batch_size if device.type == "cuda" else min(cfg.batch_size, max(4, int(CPU_BATCH_FLOP // flop)))
    inputs = _inputs(network, batch, device)
    with torch.no_grad():
        network(*inputs)
        return batch * flop / min(seconds(lambda: network(*inputs), device) for _ in range(2))
