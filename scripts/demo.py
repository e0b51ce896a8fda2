"""Every guidance from the same noise, scored and drawn: python scripts/demo.py"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from omegaconf import MISSING, DictConfig, OmegaConf

from sag import storage
from sag.build import compose
from sag.data import Images
from sag.sampling.shards import read_samples
from scripts.common import run
from scripts.rows import COLUMNS, compose_row
from scripts.visualize import draw_masks

matplotlib.use("agg")
SHOWN = 10  # samples of each row in the picture
FILES = ("samples.png", "masks.png", "scores.png", "table.md")


@dataclass
class DemoConfig:
    """The keys of configs/demo.yaml and their types; the values are there."""

    num_samples: int = MISSING
    common: list[str] = MISSING
    rows: dict[str, list[str]] = MISSING
    seed: int = MISSING
    device: str = MISSING
    out: str = MISSING


def folder_of(name: str) -> str:
    """The folder of a row."""
    return name.replace(" ", "_").lower()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with storage.atomic(path) as file:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight")


def draw_samples(images: Mapping[str, Images], path: Path) -> None:
    """The first samples of every row under each other; a column is one noise."""
    figure = Figure(figsize=(SHOWN * 0.8 + 1.5, len(images) * 0.85))
    for axes, (name, batch) in zip(figure.subplots(len(images), squeeze=False)[:, 0], images.items(), strict=True):
        axes.imshow(np.concatenate(list(batch[:SHOWN]), axis=1))
        axes.set_axis_off()
        axes.text(-4, batch.shape[1] / 2, name, ha="right", va="center")
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
    settings: Any = OmegaConf.to_container(cfg)
    settings = {key: value for key, value in settings.items() if key not in ("device", "out")}
    storage.claim_files(storage.LocalFolder(out), settings, FILES)
    scores: dict[str, dict[str, float]] = {}
    images: dict[str, Any] = {}
    for name, overrides in cfg.rows.items():
        print(f"\n{name}", flush=True)
        folder = out / folder_of(name)
        own = [f"num_samples={cfg.num_samples}", f"seed={cfg.seed}"]
        run = compose_row("demo", name, [*cfg.common, *overrides, *own]).run(folder, cfg.device)
        assert run is not None
        scores[name] = dict(run.metrics)
        images[name] = read_samples(next(folder.glob(f"samples_{cfg.num_samples}x*.npz")))[0]
    draw_samples(images, out / "samples.png")
    sag = compose("sample", [*cfg.common, "guidance=[sag]", f"seed={cfg.seed}"])
    draw_masks(sag, cfg.device, out / "masks.png")
    draw_scores(scores, out / "scores.png")
    text = table(scores, cfg.num_samples)
    with storage.atomic(out / "table.md") as file:
        file.write(text.encode())
    print(f"\n{text}\nwrote {', '.join(FILES)} to {out}")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "demo", DemoConfig)


if __name__ == "__main__":
    command()
