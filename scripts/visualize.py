"""The attention mask, the degraded image and the difference it makes, over the steps: python scripts/visualize.py model=..."""

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import MISSING, DictConfig, OmegaConf
from PIL import Image

import sag
from sag import storage
from sag.build import SampleConfig
from sag.data import Images
from sag.models import AttentionLayer
from sag.sampling import Moment
from scripts.common import run

matplotlib.use("agg")
PIXELS = 96  # the least size of an image in the GIF
SHOWN, MOMENTS = 4, 10  # samples and steps of a run that are drawn
MILLISECONDS = 400  # a moment of the GIF


@dataclass
class VisualizeConfig:
    """The keys of configs/visualize.yaml and their types; the values are there."""

    model: Any = MISSING
    classifier: Any = None
    sampler: Any = MISSING
    guidance: dict[str, Any] = field(default_factory=dict)
    samples: builtins.list[int] = MISSING
    seed: int = MISSING
    size: Any = None
    labels: Any = MISSING
    layers: builtins.list[str] | None = None
    moments: int = MISSING
    precision: str = MISSING
    device: str = MISSING
    out: str | None = None
    list: bool = MISSING


def overlay(moment: Moment) -> Images:
    """The clean images, red where they are blurred."""
    red = np.where(moment.mask[..., None], [255, 60, 60], moment.clean)
    return (0.65 * moment.clean + 0.35 * red).astype(np.uint8)


def panels(moment: Moment) -> Mapping[str, Images]:
    """Pictures of a moment, (n, H, W, 3) uint8 each; the difference is relative to its own largest value."""
    grey = 255 * moment.difference / max(float(moment.difference.max()), 1e-12)
    return {
        "clean": moment.clean,
        "mask": overlay(moment),
        "degraded": moment.degraded,
        "difference": np.repeat(grey[..., None], 3, -1).astype(np.uint8),
    }


def draw_strip(moments: Sequence[Moment], path: Path, kinds: Sequence[str] = ("mask", "degraded", "difference")) -> None:
    """A PNG: a column for each moment, a row for each sample and kind of panel."""
    pictures = [panels(moment) for moment in moments]
    rows = [(i, kind) for i in range(len(moments[0].clean)) for kind in kinds]
    figure = Figure(figsize=(len(moments) + 0.5, len(rows)))
    grid = figure.subplots(len(rows), len(moments), squeeze=False)
    for (i, kind), line in zip(rows, grid, strict=True):
        for picture, moment, axes in zip(pictures, moments, line, strict=True):
            axes.imshow(picture[kind][i])
            axes.set_axis_off()
            if axes in grid[0]:
                axes.set_title(f"time {moment.time:.2f}", fontsize=7)
        line[0].text(-0.1, 0.5, kind, transform=line[0].transAxes, rotation=90, va="center", ha="right", fontsize=7)
    with storage.atomic(path) as file:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight")


def draw_gif(moments: Sequence[Moment], path: Path) -> None:
    """An animation over the moments: samples beside each other, the kinds of panels under each other."""
    frames = []
    for moment in moments:
        tiles = np.concatenate([np.concatenate(list(panel), axis=1) for panel in panels(moment).values()], axis=0)
        factor = -(-PIXELS // moment.clean.shape[1])
        frames.append(Image.fromarray(tiles.repeat(factor, 0).repeat(factor, 1)))
    with storage.atomic(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0)


def layer_table(layers: Mapping[str, AttentionLayer]) -> str:
    """The attention layers of a model."""
    lines = [f"{'layer':<12}{'resolution':>12}{'channels':>10}{'heads':>7}"]
    lines += [
        f"{name:<12}{f'{layer.resolution}x{layer.resolution}':>12}{layer.channels:>10}{layer.heads:>7}"
        for name, layer in layers.items()
    ]
    return "\n".join(lines)


def draw_masks(cfg: DictConfig, device: str, path: Path) -> None:
    """A PNG of what SAG sees of a run's first samples: where it blurs, and what comes of it. cfg: as of scripts/sample.py."""
    first = OmegaConf.merge(cfg, {"indices": list(range(min(SHOWN, cfg.num_samples))), "device": device})
    (found,) = sag.sampling.moments(sag.build.job(cast(DictConfig, first)), count=MOMENTS).values()
    draw_strip(found, path, ["mask", "degraded"])


def job_config(cfg: DictConfig) -> DictConfig:
    """Return a config as that of scripts/sample.py, which samples what this one asks for."""
    shared = OmegaConf.masked_copy(cfg, [key for key in SampleConfig.__dataclass_fields__ if key in cfg])
    count = len(cfg.samples)
    own = {"indices": list(cfg.samples), "num_samples": count, "batch_size": count, "bits": 8, "compile": False}
    return cast(DictConfig, OmegaConf.merge(SampleConfig, shared, own))


def main(cfg: DictConfig) -> None:
    """List the layers, or write a PNG and a GIF for each layer asked for."""
    if cfg.list:
        with torch.device("meta"):
            print(layer_table(instantiate(cfg.model.network, _convert_="all").attention_layers))
        return
    if cfg.moments < 1 or not cfg.samples or min(cfg.samples) < 0:
        raise ValueError(f"moments must be at least 1 and samples numbers >= 0, got {cfg.moments} and {list(cfg.samples)}")
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = {key: value for key, value in settings.items() if key not in ("device", "out", "layers")}
    key = storage.settings_hash(settings)
    out = Path(cfg.out or f"outputs/visualize/{cfg.model.name}-{key[:8]}")
    layers = cfg.layers or [cfg.guidance.sag.layer] if "sag" in cfg.guidance else []
    names = [f"{layer}.{kind}" for layer in layers for kind in ("png", "gif")]
    storage.refuse_foreign(storage.LocalFolder(out), [storage.RECORD, *names], storage.own_files(storage.LocalFolder(out), key))
    found = sag.sampling.moments(sag.build.job(job_config(cfg)), cfg.layers, cfg.moments)
    storage.claim_files(storage.LocalFolder(out), settings, names)
    for layer, moments in found.items():
        draw_strip(moments, out / f"{layer}.png")
        draw_gif(moments, out / f"{layer}.gif")
        print(f"wrote {out / layer}.png and .gif")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "visualize", VisualizeConfig)


if __name__ == "__main__":
    command()
