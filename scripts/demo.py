"""Every guidance from the same noise, scored and drawn: python scripts/demo.py"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from common import load, pick_device, run
from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import MISSING, DictConfig
from rows import COLUMNS, run_row
from torch import Tensor

from sag import storage
from sag.diffusion import Denoiser, Prediction, sample
from sag.guidance import GuidedDenoiser, SelfAttentionGuidance, attention_mass
from sag.models import Attend
from sag.noise import SampleNoise

matplotlib.use("agg")
SHOWN = 10  # samples of each row in the picture
WATCHED = 4  # samples whose masks are drawn
MOMENTS = 10  # steps that are drawn


@dataclass
class DemoConfig:
    """The keys of configs/demo.yaml and their types; the values are there."""

    num_samples: int = MISSING
    common: list[str] = MISSING
    rows: dict[str, list[str]] = MISSING
    seed: int = MISSING
    device: str = MISSING
    out: str = MISSING


ConfigStore.instance().store("demo_schema", DemoConfig)


class Watched(GuidedDenoiser):
    """SAG alone, which keeps the attention mass that each step's mask is made of: `masses`, (N, h, w) by t."""

    def __init__(self, denoiser: Denoiser, guidance: SelfAttentionGuidance) -> None:
        super().__init__(denoiser, [guidance])
        self.sag = guidance
        self.masses: dict[int, Tensor] = {}

    def __call__(
        self,
        x_t: Tensor,
        t: int,
        y: Tensor | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
    ) -> Prediction:
        """See `GuidedDenoiser.__call__`."""
        prediction = super().__call__(x_t, t, y, capture=[*capture, self.sag.layer], attend=attend)
        self.masses[t] = attention_mass(prediction.attention[self.sag.layer], self.sag.heads)
        return prediction


def folder_of(name: str) -> str:
    """The folder of a row."""
    return name.replace(" ", "_").lower()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with storage.atomic(path) as file:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight")


def draw_samples(images: Mapping[str, storage.Images], path: Path) -> None:
    """The first samples of every row under each other; a column is one noise."""
    figure = Figure(figsize=(SHOWN * 0.8 + 1.5, len(images) * 0.85))
    for axes, (name, batch) in zip(figure.subplots(len(images), squeeze=False)[:, 0], images.items(), strict=True):
        axes.imshow(np.concatenate(list(batch[:SHOWN]), axis=1))
        axes.set_axis_off()
        axes.text(-4, batch.shape[1] / 2, name, ha="right", va="center")
    save(figure, path)


def draw_masks(cfg: DictConfig, path: Path) -> None:
    """What SAG sees of some samples: the predicted clean image over the steps, red where it is blurred."""
    run_cfg = compose("sample", [*cfg.common, "guidance=[sag]"])
    device = pick_device(cfg.device, "float32")
    network, sampler = load(run_cfg.model, device, "float32", False), instantiate(run_cfg.sampler)
    diffusion = instantiate(run_cfg.model.diffusion).respace(sampler.steps)
    watched = Watched(
        Denoiser(network, diffusion, run_cfg.model.null_label), instantiate(run_cfg.guidance.sag, _convert_="all")
    )
    noise = SampleNoise(cfg.seed, range(WATCHED), (network.image_channels, network.image_size, network.image_size), device)
    y = None if network.num_classes is None else torch.arange(WATCHED, device=device)
    clean = {step.t: storage.quantise(step.x_0) for step in sample(watched, sampler, noise.initial(), y, noise=noise.step)}
    chosen = np.linspace(len(clean) - 1, 0, min(MOMENTS, len(clean))).round().astype(int)
    figure = Figure(figsize=(len(chosen), WATCHED))
    for row, line in enumerate(figure.subplots(WATCHED, len(chosen))):
        for axes, t in zip(line, chosen, strict=True):
            mask = (watched.masses[t][row] > watched.sag.threshold).cpu().numpy()
            size = clean[t].shape[1]
            large = mask.repeat(size // mask.shape[0], axis=0).repeat(size // mask.shape[1], axis=1)
            red = np.where(large[..., None], [255, 60, 60], clean[t][row])
            axes.imshow((0.65 * clean[t][row] + 0.35 * red).astype(np.uint8))
            axes.set_axis_off()
            if row == 0:
                axes.set_title(f"level {diffusion.schedule.noise_level[t]:.2f}", fontsize=7)
    save(figure, path)


def draw_scores(scores: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """A bar for every row in a panel for every metric."""
    figure = Figure(figsize=(2.2 * len(COLUMNS), 0.4 * len(scores) + 1))
    for axes, (metric, title) in zip(figure.subplots(1, len(COLUMNS), sharey=True), COLUMNS.items(), strict=True):
        axes.barh(list(scores), [row.get(metric, np.nan) for row in scores.values()])
        axes.set_title(title)
        axes.invert_yaxis() if not axes.yaxis_inverted() else None
    save(figure, path)


def table(scores: Mapping[str, Mapping[str, float]], count: int) -> str:
    """Markdown."""
    lines = [f"| {count} samples | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{row[metric]:.3f}' if metric in row else '-' for metric in COLUMNS)} |"
        for name, row in scores.items()
    ]
    return "\n".join(lines) + "\n"


def main(cfg: DictConfig) -> None:
    """Sample and score each row, then write pictures, table and plot."""
    if cfg.num_samples < SHOWN:
        raise ValueError(f"num_samples must be at least {SHOWN}, got {cfg.num_samples}")
    out = Path(cfg.out)
    scores: dict[str, dict[str, float]] = {}
    images: dict[str, Any] = {}
    for name, overrides in cfg.rows.items():
        print(f"\n{name}", flush=True)
        folder = out / folder_of(name)
        own = [f"num_samples={cfg.num_samples}", f"seed={cfg.seed}"]
        scores[name] = run_row([*cfg.common, *overrides, *own], folder, cfg.device)
        images[name] = storage.read_samples(next(folder.glob("samples_*.npz")))[0]
    draw_samples(images, out / "samples.png")
    draw_masks(cfg, out / "masks.png")
    draw_scores(scores, out / "scores.png")
    text = table(scores, cfg.num_samples)
    with storage.atomic(out / "table.md") as file:
        file.write(text.encode())
    print(f"\n{text}\nwrote samples.png, masks.png, scores.png and table.md to {out}")


if __name__ == "__main__":
    run(main, "demo", DemoConfig)
