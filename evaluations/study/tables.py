"""Scored runs as tables and plots."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from evaluations.metrics import COLUMNS
from evaluations.study.results import Run
from sag import storage
from sag.build.messages import CONFIGS

BASE = "no guidance"  # the row that the others of a plot are compared with


class Basis(NamedTuple):
    """What scores that stand beside each other must share."""

    num_samples: int
    extractor: str
    reference: str

    def words(self) -> tuple[str, ...]:
        """Each field as a title says it."""
        return f"{self.num_samples} samples", f"extractor {self.extractor}", f"reference {self.reference[:8] or 'unknown'}"


def basis(run: Run) -> Basis:
    """That of a scored run."""
    return Basis(run.num_samples, run.scoring["extractor"], run.scoring.get("reference", ""))


@dataclass(frozen=True)
class Line:
    """The runs of one row, which differ in their seed only."""

    row: str
    runs: Sequence[Run]

    @property
    def num_samples(self) -> int:
        """Of each run."""
        return self.runs[0].num_samples

    def mean(self, metric: str) -> float:
        """Over the seeds; nan where no run has it."""
        return float(np.mean(self._values(metric))) if self._values(metric) else float("nan")

    def spread(self, metric: str) -> float | None:
        """The standard deviation of one seed; None where there are not several."""
        return float(np.std(self._values(metric), ddof=1)) if len(self._values(metric)) > 1 else None

    def published(self, metric: str) -> float | None:
        """What a paper has, if it has it."""
        value = self.runs[-1].published.get("values", {}).get(metric)
        return None if value is None else float(value)

    @property
    def comparable(self) -> bool:
        """Whether the published numbers are about as many samples, scored by the same network."""
        facts = self.runs[-1].published
        same_n = facts.get("num_samples") == self.num_samples
        return same_n and facts.get("extractor") == self.runs[-1].scoring["extractor"]

    def _values(self, metric: str) -> list[float]:
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]


def lines(runs: Iterable[Run]) -> dict[str, list[Line]]:
    """The scored runs by title and row; failed ones are left out.

    Scores compare only if N, extractor and reference are the same. A table with runs of several kinds is therefore split, and
    the titles of its parts say in what they differ: "sweep (2000 samples)", "sweep (500 samples)".

    Args:
        runs: of any tables.

    Returns:
        The rows of each table, in the order of the table's config, else that in which they were first added.
    """
    found: dict[str, dict[Basis, dict[str, list[Run]]]] = {}
    for run in runs:
        if run.error is None:
            found.setdefault(run.table, {}).setdefault(basis(run), {}).setdefault(run.row, []).append(run)
    parts: dict[str, list[Line]] = {}
    for table, kinds in found.items():
        several = [len({getattr(kind, field) for kind in kinds}) > 1 for field in Basis._fields]
        for kind, rows in kinds.items():
            differing = ", ".join(text for text, differs in zip(kind.words(), several, strict=True) if differs)
            title = f"{table} ({differing})" if differing else table
            while title in parts:  # a table may be called as part of another
                title += "'"
            parts[title] = [Line(row, rows[row]) for row in _ordered(table, rows)]
    return parts


def row_names(table: str) -> list[str]:
    """Return the rows of a table in the order of its config; none if there is no config of that name."""
    path = CONFIGS / f"table/{table}.yaml"
    return list(OmegaConf.load(path).rows) if path.exists() else []


def _ordered(table: str, rows: Iterable[str]) -> list[str]:
    places = {row: place for place, row in enumerate(row_names(table))}
    return sorted(rows, key=lambda row: places.get(row, len(places)))


def differences(table: Sequence[Line]) -> list[Line]:
    """What each technique adds: the metrics of a row minus those of the row that has all but it, seed by seed.

    Two such runs begin with the same noise, so that their difference spreads less than either of them.
    """
    runs = {_settings(run): run for line in table for run in line.runs}
    found: dict[str, list[Run]] = {}
    for run in runs.values():
        for technique in run.settings.get("guidance", {}):
            base = runs.get(_settings(run, without=technique))
            if base is not None:
                metrics = {name: run.metrics[name] - base.metrics[name] for name in run.metrics if name in base.metrics}
                found.setdefault(f"{run.row} minus {base.row}", []).append(replace(run, metrics=metrics, published={}))
    return [Line(row, runs) for row, runs in found.items()]


def _settings(run: Run, without: str | None = None) -> str:
    guidance = {name: settings for name, settings in run.settings.get("guidance", {}).items() if name != without}
    return json.dumps({**run.settings, "guidance": guidance}, sort_keys=True)


def markdown(table: Sequence[Line]) -> str:
    """The mean and, with several seeds, the standard deviation of one seed, beside them what papers have; then differences.

    Those of rows with several seeds only, as a single one has no spread.
    """
    text = _grid(table)
    published = [line for line in table if line.runs[-1].published]
    if published and not all(line.comparable for line in published):
        counts = " or ".join(sorted({str(line.runs[-1].published["num_samples"]) for line in published}))
        text += f"\nPublished numbers (in parentheses) are of {counts} samples and are not comparable with these runs.\n"
    elif published:
        text += "\nIn parentheses: published, and the difference.\n"
    paired = [line for line in differences(table) if len(line.runs) > 1]
    return f"{text}\nSeed by seed:\n\n{_grid(paired)}" if paired else text


def _grid(table: Sequence[Line]) -> str:
    head = [f"{table[0].num_samples} samples", "seeds", *COLUMNS.values()]
    rows = [[line.row, str(len(line.runs)), *(cell(line, metric) for metric in COLUMNS)] for line in table]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]) + "\n"


def cell(line: Line, metric: str) -> str:
    """Mean ± standard deviation of one seed, and in parentheses what is published, with the difference where it compares."""
    mean, spread, published = line.mean(metric), line.spread(metric), line.published(metric)
    text = "-" if np.isnan(mean) else f"{mean:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
    if published is not None:
        text += f" ({published:g}, {mean - published:+.3f})" if line.comparable else f" ({published:g})"
    return text


def measured(table: Sequence[Line]) -> list[str]:
    """The metrics that any run of a table has."""
    return [metric for metric in COLUMNS if any(metric in run.metrics for line in table for run in line.runs)]


def draw(table: Sequence[Line], base: Line | None, path: Path) -> None:
    """A panel for each metric, a point for each row with the standard deviation of one seed; dashed: `base` with its own."""
    columns = measured(table)
    figure = Figure(figsize=(2.2 * len(columns), 0.3 * len(table) + 1.2))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, columns, strict=True):
        for place, line in enumerate(table):
            axes.errorbar(line.mean(metric), place, xerr=line.spread(metric) or 0.0, fmt="o", color="C0", capsize=3)
        if base is not None:
            mean, spread = base.mean(metric), base.spread(metric) or 0.0
            axes.axvline(mean, color="gray", linestyle="--", linewidth=1)
            axes.axvspan(mean - spread, mean + spread, color="gray", alpha=0.2, linewidth=0)
        axes.set_title(COLUMNS[metric])
        axes.set_yticks(range(len(table)), [line.row for line in table])
    axes.invert_yaxis()
    with storage.atomic(path) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
