"""Plots of tables, and pictures of samples and of what SAG sees."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from evaluations.metrics import COLUMNS
from evaluations.study.tables import BASE, Table
from sag import storage
from sag.data import Images
from sag.sampling import Moment

PIXELS = 96  # the least size of an image in an animation
MILLISECONDS = 400  # a moment of an animation


def draw_table(table: Table, base: Table | None, path: Path) -> None:
    """Draw a panel for each metric, with a point for each row and the standard deviation from seed to seed.

    Example:
        >>> from pathlib import Path
        >>> from evaluations.study.pictures import draw_table
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.tables import arrange
        >>> (table,) = arrange([Run("k", "scales", "SAG", 0, 10, {}, {"extractor": "inception"}, {"fid": 1.5})])
        >>> draw_table(table, None, Path("scales.png"))

    Args:
        table: The rows.
        base: The table with the row `BASE`, which is drawn as a dashed line in a band; None draws no line.
        path: The PNG.
    """
    places = range(len(table.mean))
    figure = Figure(figsize=(2.2 * len(table.measured), 0.3 * len(places) + 1.2))
    panels = figure.subplots(1, len(table.measured), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, table.measured, strict=True):
        axes.errorbar(table.mean[metric], places, xerr=table.spread[metric].fillna(0), fmt="o", color="C0", capsize=3)
        if base is not None:
            mean, spread = base.mean[metric][BASE], base.spread[metric].fillna(0)[BASE]
            axes.axvline(mean, color="gray", linestyle="--", linewidth=1)
            axes.axvspan(mean - spread, mean + spread, color="gray", alpha=0.2, linewidth=0)
        axes.set_title(COLUMNS[metric])
        axes.set_yticks(places, table.mean.index)
    panels[0].invert_yaxis()
    _save(figure, path, dpi=120)


def draw_samples(images: Mapping[str, Images], path: Path) -> None:
    """Draw the samples of every row below each other.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from evaluations.study.pictures import draw_samples
        >>> draw_samples({"SAG": np.zeros((4, 32, 32, 3), np.uint8)}, Path("samples.png"))

    Args:
        images: As many samples (N, H, W, C) of each row, by its name.
        path: The PNG.
    """
    width = max(len(batch) for batch in images.values())
    figure = Figure(figsize=(width * 0.8 + 1.5, len(images) * 0.85))
    for axes, (name, batch) in zip(figure.subplots(len(images), squeeze=False)[:, 0], images.items(), strict=True):
        axes.imshow(np.concatenate(list(batch), axis=1))
        axes.set_axis_off()
        axes.text(-4, batch.shape[1] / 2, name, ha="right", va="center")
    _save(figure, path, dpi=150)


def draw_strip(moments: Sequence[Moment], path: Path, kinds: Sequence[str] = ("mask", "degraded", "difference")) -> None:
    """Draw what SAG sees: a column for each moment, a row for each sample and kind of panel.

    Example:
        >>> from pathlib import Path
        >>> import sag
        >>> from evaluations.study.pictures import draw_strip
        >>> job = sag.build.job(sag.compose("sample", ["num_samples=2", "sampler.steps=2", "device=cpu"]))
        >>> draw_strip(sag.sampling.moments(job, count=2)["output.2"], Path("seen.png"))

    Args:
        moments: The moments.
        path: The PNG.
        kinds: Names of `panels`.
    """
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
    _save(figure, path, dpi=150)


def draw_gif(moments: Sequence[Moment], path: Path) -> None:
    """Draw what SAG sees as an animation: samples beside each other, the kinds of panels below each other.

    Example:
        >>> from pathlib import Path
        >>> import sag
        >>> from evaluations.study.pictures import draw_gif
        >>> job = sag.build.job(sag.compose("sample", ["num_samples=2", "sampler.steps=2", "device=cpu"]))
        >>> draw_gif(sag.sampling.moments(job, count=2)["output.2"], Path("seen.gif"))

    Args:
        moments: The moments.
        path: The GIF.
    """
    frames = []
    for moment in moments:
        tiles = np.concatenate([np.concatenate(list(panel), axis=1) for panel in panels(moment).values()], axis=0)
        factor = -(-PIXELS // moment.clean.shape[1])
        frames.append(Image.fromarray(tiles.repeat(factor, 0).repeat(factor, 1)))
    with storage.atomic(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0)


def panels(moment: Moment) -> dict[str, Images]:
    """Return the pictures of a moment, (n, H, W, 3) uint8 each.

    Example:
        >>> import sag
        >>> from evaluations.study.pictures import panels
        >>> job = sag.build.job(sag.compose("sample", ["num_samples=2", "sampler.steps=2", "device=cpu"]))
        >>> (moment,) = sag.sampling.moments(job, count=1)["output.2"]
        >>> list(panels(moment)), panels(moment)["mask"].shape
        (['clean', 'mask', 'degraded', 'difference'], (2, 32, 32, 3))

    Args:
        moment: The moment.

    Returns:
        The clean images; the same, red where they are blurred; the degraded images; and the difference relative to its own
        largest value.
    """
    red = np.where(moment.mask[..., None], [255, 60, 60], moment.clean)
    grey = 255 * moment.difference / max(float(moment.difference.max()), 1e-12)
    return {
        "clean": moment.clean,
        "mask": (0.65 * moment.clean + 0.35 * red).astype(np.uint8),
        "degraded": moment.degraded,
        "difference": np.repeat(grey[..., None], 3, -1).astype(np.uint8),
    }


def _save(figure: Figure, path: Path, dpi: int) -> None:
    with storage.atomic(path) as file:
        figure.savefig(file, format="png", dpi=dpi, bbox_inches="tight")
