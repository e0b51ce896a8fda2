"""The page of a report: one HTML file that needs no network."""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert
from PIL import Image

from evaluations.metrics import COLUMNS
from evaluations.study.results import Run
from evaluations.study.tables import Line

SHOWN = 16  # images of a run in the gallery, at most
WIDTH = 384  # of a gallery, in pixels, at most


def page(found: Mapping[str, Sequence[Line]], failed: Sequence[Run]) -> str:
    """All tables, sortable, with plots and galleries; then the runs that failed."""
    body = "".join(f"<h2>{html.escape(name)}</h2>{_table(t)}{_charts(t)}{_gallery(t)}{_masks(t)}" for name, t in found.items())
    if failed:
        rows = "".join(f"<li>{html.escape(f'{run.table}: {run.row}, seed {run.seed}: {run.error}')}</li>" for run in failed)
        body += f"<h2>Failed</h2><ul class=note>{rows}</ul>"
    style, script = (Path(__file__).with_suffix(suffix).read_text() for suffix in (".css", ".js"))
    library = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the default, which sets vegaEmbed
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Results</title><style>{style}</style><h1>Results</h1>{body}"
        f"<script>{library}</script><script>{script}</script></html>"
    )


def _table(table: Sequence[Line]) -> str:
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in ["row", "seeds", *COLUMNS.values()])
    rows = ""
    for line in table:
        cells = (
            f"<td data-value='{html.escape(line.row)}'>{html.escape(line.row)}<td data-value={len(line.runs)}>{len(line.runs)}"
        )
        for metric in COLUMNS:
            mean, spread, published = line.mean(metric), line.spread(metric), line.published(metric)
            text = "" if math.isnan(mean) else f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
            if published is not None:
                difference = f", {mean - published:+.3f}" if line.comparable else ""
                text += f" <span class=paper>({published:g}{difference})</span>"
            cells += f"<td data-value='{'' if math.isnan(mean) else mean}'>{text}"
        rows += f"<tr>{cells}"
    note = f"{table[0].num_samples} samples; ± is the standard deviation of one seed. Click a head to sort."
    published_lines = [line for line in table if line.runs[-1].published]
    if published_lines:
        note += " In parentheses: published"
        note += (
            ", and the difference." if all(line.comparable for line in published_lines) else " with another number of samples."
        )
    return f"<table><thead><tr>{heads}</thead><tbody>{rows}</tbody></table><p>{note}</p>"


def _charts(table: Sequence[Line]) -> str:
    points = [
        {
            "row": line.row,
            "scale": _scale(line),
            "with": " + ".join(name for name in line.runs[0].settings.get("guidance", {}) if name != "sag") or "SAG alone",
            **{metric: line.mean(metric) for metric in COLUMNS if not math.isnan(line.mean(metric))},
            "low": line.mean("fid") - (line.spread("fid") or 0),
            "high": line.mean("fid") + (line.spread("fid") or 0),
        }
        for line in table
        if not math.isnan(line.mean("fid"))
    ]
    charts = []
    sags = [point for point in points if point["scale"] is not None]
    if len({point["scale"] for point in sags}) > 1:
        x = {"field": "scale", "type": "quantitative", "title": "scale of SAG"}
        y = {"type": "quantitative", "scale": {"zero": False}, "title": "FID"}
        colour = {"field": "with", "type": "nominal", "title": "with"}
        tip = [{"field": "row"}, {"field": "fid", "format": ".3f"}]
        layers = [
            {
                "mark": {"type": "line", "point": True},
                "encoding": {"x": x, "y": {"field": "fid", **y}, "color": colour, "tooltip": tip},
            },
            {"mark": "rule", "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, "color": colour}},
        ]
        charts.append({"title": "FID against scale", "data": {"values": sags}, "layer": layers})
    both = [point for point in points if "precision" in point and "recall" in point]
    if both:
        axes = {
            axis: {"field": metric, "type": "quantitative", "scale": {"zero": False}}
            for axis, metric in (("x", "recall"), ("y", "precision"))
        }
        encoding = {**axes, "color": {"field": "row", "type": "nominal", "sort": None}, "tooltip": {"field": "row"}}
        mark = {"type": "point", "filled": True, "size": 80}
        charts.append({"title": "Precision and recall", "data": {"values": both}, "mark": mark, "encoding": encoding})
    size = {"width": 320, "height": 240}
    places = (f"<div data-chart='{_attribute(size | chart)}'></div>" for chart in charts)
    return f"<div class=charts>{''.join(places)}</div>"


def _scale(line: Line) -> float | None:
    """The scale of SAG, 0 without it; None where another technique replaces it."""
    guidance: Mapping[str, Any] = line.runs[0].settings.get("guidance", {})
    if "sag" in guidance:
        return float(guidance["sag"]["scale"])
    return None if "blur" in guidance else 0.0


def _gallery(table: Sequence[Line]) -> str:
    """The first images of every row's first seed, which begin with the same noise, behind a slider."""
    pictures = [
        {"row": line.row, "image": _encoded(picture)} for line in table if (picture := _first_images(line.runs[0])) is not None
    ]
    if len(pictures) < 2:
        return ""
    slider = f"<input type=range min=0 max={len(pictures) - 1} value=0 aria-label=row>"
    return f"<div class=gallery data-pictures='{_attribute(pictures)}'><p>{slider} <output></output></p><img alt=samples></div>"


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


def _masks(table: Sequence[Line]) -> str:
    """What SAG saw, of the first row that has a strip of it in its folder."""
    for line in table:
        path = Path(line.runs[0].folder or "") / "masks.png"
        if line.runs[0].folder is not None and path.exists():
            with Image.open(path) as picture:
                strip = _encoded(picture.convert("RGB"))
            return f"<h3>What SAG sees: {html.escape(line.row)}</h3><img class=masks alt=masks src='{strip}'>"
    return ""


def _encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _attribute(value: Any) -> str:
    return html.escape(json.dumps(value), quote=True)
