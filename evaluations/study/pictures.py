"""Plots of tables."""

from pathlib import Path

from matplotlib.figure import Figure

from evaluations.metrics import COLUMNS
from evaluations.study.tables import BASE, Table
from sag import storage


def draw_table(table: Table, base: Table | None, path: Path) -> None:
    """Draw a panel for each metric, with a point for each row and the standard deviation from seed to seed.

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
    with storage.atomic(path) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
