"""The page of a report: one HTML file that needs no network."""

import base64
import html
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from evaluations.study.results import Run
from evaluations.study.tables import Table

SHOWN = 16  # images of a run in the gallery, at most
WIDTH = 384  # of a gallery, in pixels, at most
TIP = "tip: "  # begins the id of a point of a chart, which says what the mouse shows there
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 9, "font.sans-serif": ["DejaVu Sans"]}
METADATA = ("Creator", "Date", "Format", "Type")  # of an SVG
COLORS = [f"C{i}" for i in range(10)]


def page(tables: Iterable[Table], failed: Sequence[Run]) -> str:
    """Write all tables, sortable, with charts and galleries, and the runs that failed.

    Example:
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.page import page
        >>> from evaluations.study.tables import arrange
        >>> tables = arrange([Run("k", "scales", "SAG", 0, 10, {}, {"extractor": "inception"}, {"fid": 1.5})])
        >>> page(tables, []).count("<table>")
        1

    Args:
        tables: The tables.
        failed: The runs that failed.

    Returns:
        The HTML.
    """
    parts = [f"<h2>{html.escape(table.title)}</h2>{_table(table)}{_charts(table)}{_pictures(table)}" for table in tables]
    if failed:
        rows = "".join(f"<li>{html.escape(f'{run.table}: {run.row}, seed {run.seed}: {run.error}')}</li>" for run in failed)
        parts.append(f"<h2>Failed</h2><ul class=note>{rows}</ul>")
    style, script = (Path(__file__).with_suffix(suffix).read_text() for suffix in (".css", ".js"))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Results</title><style>{style}</style><h1>Results</h1>"
        f"{''.join(parts)}<script>{script}</script></html>"
    )


def _table(table: Table) -> str:
    cells = table.cells().rename(index=html.escape).replace(r"(\(.*\))", r"<span class=paper>\1</span>", regex=True)
    heads = "".join(f"<th>{head}" for head in ["row", *cells.columns])
    rows = "".join(f"<tr>{''.join(f'<td>{cell}' for cell in line)}" for line in cells.itertuples())
    note = f"{table.basis.num_samples} samples; ± is the standard deviation of one seed. Click a head to sort. {table.note}"
    return f"<table><thead><tr>{heads}</thead><tbody>{rows}</tbody></table><p>{html.escape(note)}</p>"


def _charts(table: Table) -> str:
    with matplotlib.rc_context(STYLE):
        charts = [_fid_by_scale(table), _precision_and_recall(table)]
        return f"<div class=charts>{''.join(_svg(chart) for chart in charts if chart is not None)}</div>"


def _fid_by_scale(table: Table) -> Figure | None:
    """Draw a colour for each set of techniques beside SAG; None if there is only one scale."""
    curves: dict[str, list[tuple[float, str]]] = {}
    for row, run in _first_runs(table).items():
        guidance = run.settings.get("guidance", {})
        scale = _scale(guidance)
        if scale is not None and pd.notna(table.mean["fid"][row]):
            others = " + ".join(name for name in guidance if name != "sag") or "SAG alone"
            curves.setdefault(others, []).append((scale, row))
    if len({scale for curve in curves.values() for scale, _ in curve}) < 2:
        return None
    figure, axes = _axes("FID against scale", "scale of SAG", "FID")
    for (others, curve), color in zip(curves.items(), itertools.cycle(COLORS)):
        scales, rows = map(list, zip(*sorted(curve), strict=True))
        mean, spread = table.mean["fid"][rows], table.spread["fid"][rows].fillna(0)
        joined = "-" if len(set(scales)) == len(scales) else "none"  # not if rows differ in more than the scale
        axes.errorbar(scales, mean, yerr=spread, color=color, label=others, linestyle=joined)
        for scale, row, fid in zip(scales, rows, mean, strict=True):
            axes.plot(scale, fid, "o", color=color, gid=f"{TIP}{row}: {fid:.3f}")
    axes.legend(title="with", frameon=False)
    return figure


def _scale(guidance: Mapping[str, Any]) -> float | None:
    """The scale of SAG, 0 without it; None where another technique replaces it."""
    if "sag" in guidance:
        return float(guidance["sag"]["scale"])
    return None if "blur" in guidance else 0.0


def _precision_and_recall(table: Table) -> Figure | None:
    """Draw a point for each row; None if there is none."""
    points = table.mean[["recall", "precision"]].dropna()
    if points.empty:
        return None
    figure, axes = _axes("Precision and recall", "recall", "precision")
    for (row, recall, precision), color in zip(points.itertuples(), itertools.cycle(COLORS)):
        tip = f"{TIP}{row}: precision {precision:.3f}, recall {recall:.3f}"
        axes.plot(recall, precision, "o", color=color, label=row, gid=tip)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), ncols=-(-len(points) // 16), frameon=False)
    return figure


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 3.3))
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """Return a figure as a part of the page: in the colour of its text, with tips, and without ids that figures might share."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata=dict.fromkeys(METADATA))
    text = file.getvalue()[file.getvalue().index("<svg") :].replace("#000000", "currentColor")
    return re.sub(rf'<g id="({TIP}([^"]*)|[^"]*)"', lambda found: f"<g><title>{found[2]}</title" if found[2] else "<g", text)


def _pictures(table: Table) -> str:
    """The first images of each row, which begin with the same noise, behind a slider; then what SAG saw in one of the rows."""
    found = {row: tiles for row, run in _first_runs(table).items() if (tiles := _first_images(run)) is not None}
    pictures = [{"row": row, "image": _encoded(tiles)} for row, tiles in found.items()]
    parts = []
    if len(pictures) > 1:
        slider = f"<input type=range min=0 max={len(pictures) - 1} value=0 aria-label=row>"
        data = html.escape(json.dumps(pictures))
        parts.append(f"<div class=gallery data-pictures='{data}'><p>{slider} <output></output></p><img alt=samples></div>")
    for run in table.runs:
        path = Path(run.folder or "") / "masks.png"
        if run.folder is not None and path.exists():
            with Image.open(path) as opened:
                strip = _encoded(opened.convert("RGB"))
            parts.append(f"<h3>What SAG sees: {html.escape(run.row)}</h3><img class=masks alt=masks src='{strip}'>")
            break
    return "".join(parts)


def _first_runs(table: Table) -> dict[str, Run]:
    first: dict[str, Run] = {}
    for run in table.runs:
        first.setdefault(run.row, run)
    return first


def _first_images(run: Run) -> Image.Image | None:
    """Of a run whose folder has its picture: the first images, in a square."""
    path = Path(run.folder or "") / "grid.png"
    if run.folder is None or not path.exists():
        return None
    with Image.open(path) as opened:
        whole = opened.convert("RGB")
    count = min(run.num_samples, 64)
    columns = math.ceil(math.sqrt(count))
    size = whole.width // columns
    side = min(math.isqrt(SHOWN), columns)
    tiles = Image.new("RGB", (side * size, side * size))
    for i in range(min(side * side, count)):
        place = (i % columns * size, i // columns * size)
        tile = whole.crop((*place, place[0] + size, place[1] + size))
        tiles.paste(tile, (i % side * size, i // side * size))
    return tiles if tiles.width <= WIDTH else tiles.resize((WIDTH, WIDTH), Image.Resampling.LANCZOS)


def _encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
