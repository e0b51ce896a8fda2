"""The attention mask, the degraded image and the difference it makes, over the steps: python scripts/visualize.py model=..."""

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import MISSING, DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from sag import storage
from sag.data import Images
from sag.data.tensors import quantise
from sag.diffusion import Condition, Denoiser, Sampler, sample
from sag.guidance import Guidance, GuidanceState, GuidedDenoiser, SelfAttentionGuidance
from sag.models import AttentionLayer
from sag.noise import SampleNoise
from scripts.common import build_guidance, image_size, load, pick_device, run
from scripts.sample import choose_labels

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


ConfigStore.instance().store("visualize_schema", VisualizeConfig)


@dataclass(frozen=True)
class Moment:
    """A step as SAG sees it, for n samples.

    time: t / T. clean, degraded: the predicted clean image and what SAG makes of it, (n, H, W, 3) uint8. mask: where it
    is blurred, (n, H, W) bool. difference: root mean square over channels of eps - eps_weak, (n, H, W) float32.
    """

    time: float
    clean: Images
    mask: NDArray[np.bool_]
    degraded: Images
    difference: NDArray[np.float32]


def trajectory(
    denoiser: GuidedDenoiser, sampler: Sampler, noise: SampleNoise, condition: Condition | None, count: int
) -> dict[int, Tensor]:
    """x_t at `count` steps t, evenly spread from the first to the last."""
    steps = len(denoiser.diffusion.schedule)
    wanted = set(np.linspace(steps - 1, 0, min(count, steps)).round().astype(int).tolist())
    x_t, found = noise.initial(), {}
    for step in sample(denoiser, sampler, x_t, condition, noise=noise.step):
        if step.t in wanted:
            found[step.t] = x_t
        x_t = step.x
    return found


@torch.no_grad()
def observe(
    denoiser: Denoiser, sag: SelfAttentionGuidance, x_t: Tensor, t: int, condition: Condition | None, noise: SampleNoise
) -> Moment:
    """What `sag` does at x_t, whether it is on there or not."""
    state = GuidanceState(denoiser, x_t, t, condition, [sag], (), None, noise.mask)
    eps = state.prediction(sag.branch).eps
    clean, blurred = sag.clean_and_blurred(state)
    mask = sag.mask(state, clean, blurred)
    factors = [large // small for large, small in zip(clean.shape[2:], mask.shape[1:], strict=True)]
    x_t_weak = sag.degrade(state)
    weak = denoiser(x_t_weak, t, state.condition(sag.branch)).eps
    return Moment(
        float(denoiser.diffusion.schedule.time[t]),
        _rgb(clean),
        mask.repeat_interleave(factors[0], 1).repeat_interleave(factors[1], 2).cpu().numpy(),
        _rgb(denoiser.diffusion.x0_from_eps(x_t_weak, t, eps)),
        (eps - weak).square().mean(1).sqrt().cpu().numpy(),
    )


def _rgb(x: Tensor) -> Images:
    """Images (N, C, H, W) in [-1, 1] as pictures: the first three channels, or the first one in grey."""
    return quantise(x[:, :3] if x.shape[1] >= 3 else x[:, :1])


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


def look(
    cfg: DictConfig, layers: Sequence[str] | None, samples: Sequence[int], count: int, device: torch.device
) -> dict[str, list[Moment]]:
    """The moments of some samples by layer. cfg: model, classifier, sampler, guidance, seed, labels and precision.

    Raises:
        ValueError: no SAG in the guidance, an unknown layer, or what sampling raises.
    """
    if "sag" not in cfg.guidance:
        raise ValueError("there is nothing to see without SAG; add sag to guidance=[...]")
    network = load(cfg.model, device, cfg.precision, False)
    guidance: list[Guidance] = build_guidance(cfg.guidance, lambda node: load(node, device, cfg.precision, False))
    sampler: Sampler = instantiate(cfg.sampler)
    denoiser = Denoiser(network, instantiate(cfg.model.diffusion).respace(sampler.steps), cfg.model.null_label)
    lenses: dict[str, SelfAttentionGuidance] = {}
    for layer in layers or [cfg.guidance.sag.layer]:
        lenses[layer] = instantiate({**cfg.guidance.sag, "layer": layer}, _convert_="all")
        lenses[layer].check(denoiser)
    labels = choose_labels(cfg, samples, denoiser, guidance)
    condition = denoiser.condition(None if labels is None else torch.tensor(labels, device=device))
    shape = (network.image_channels, *image_size(network, cfg.size))
    noise = SampleNoise(cfg.seed, samples, shape, device)
    states = trajectory(GuidedDenoiser(denoiser, guidance, noise.mask), sampler, noise, condition, count)
    return {
        layer: [observe(denoiser, sag, x_t, t, condition, noise) for t, x_t in states.items()] for layer, sag in lenses.items()
    }


def draw_masks(cfg: DictConfig, device: str, path: Path) -> None:
    """A PNG of what SAG sees of a run's first samples: where it blurs, and what comes of it. cfg: as of scripts/sample.py."""
    samples = range(min(SHOWN, cfg.num_samples))
    (moments,) = look(cfg, None, samples, MOMENTS, pick_device(device, cfg.precision)).values()
    draw_strip(moments, path, ["mask", "degraded"])


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
    found = look(cfg, cfg.layers, list(cfg.samples), cfg.moments, pick_device(cfg.device, cfg.precision))
    storage.claim_files(storage.LocalFolder(out), settings, names)
    for layer, moments in found.items():
        draw_strip(moments, out / f"{layer}.png")
        draw_gif(moments, out / f"{layer}.gif")
        print(f"wrote {out / layer}.png and .gif")


if __name__ == "__main__":
    run(main, "visualize", VisualizeConfig)
