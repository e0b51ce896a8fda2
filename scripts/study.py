"""Compare settings on the bundled model, row by row: python scripts/study.py part=main; again to continue."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from common import run
from hydra.core.config_store import ConfigStore
from matplotlib.figure import Figure
from omegaconf import MISSING, DictConfig
from rows import COLUMNS, run_row

from sag import storage

matplotlib.use("agg")


@dataclass
class StudyConfig:
    """The keys of configs/study.yaml and their types; the values are there."""

    part: str = MISSING
    num_samples: int = MISSING
    common: list[str] = MISSING
    parts: dict[str, Any] = MISSING
    device: str = MISSING
    keep_samples: bool = MISSING
    out: str = MISSING


ConfigStore.instance().store("study_schema", StudyConfig)

Result = dict[str, str]
BASE = "no guidance"  # the row that the others are compared with in the plots
KEYS = ["part", "row", "seed", "num_samples", "settings"]


def plan(cfg: DictConfig) -> Iterator[tuple[str, str, int, list[str]]]:
    """(part, row, seed, overrides) of everything that is asked for, the first seed of every row before the second of any.

    Raises:
        ValueError: an unknown part.
    """
    if cfg.part != "all" and cfg.part not in cfg.parts:
        raise ValueError(f"unknown part {cfg.part!r}; expected all or one of {', '.join(cfg.parts)}")
    for part in cfg.parts if cfg.part == "all" else [cfg.part]:
        for seed in cfg.parts[part].seeds:
            for row, overrides in cfg.parts[part].rows.items():
                yield part, row, seed, [*cfg.common, *overrides, f"seed={seed}", f"num_samples={cfg.num_samples}"]


def read_results(path: Path) -> list[Result]:
    """The rows that are done."""
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def write_results(path: Path, results: Sequence[Result]) -> None:
    """A CSV with a line for each row and seed."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*KEYS, *COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic(path) as file:
        file.write(text.getvalue().encode())


def table(results: Sequence[Mapping[str, str]]) -> str:
    """Markdown: a section for each part, the mean of each row and, where there are several seeds, their standard deviation."""
    lines: list[str] = []
    for part in dict.fromkeys(result["part"] for result in results):
        own = [result for result in results if result["part"] == part]
        counts = sorted({result["num_samples"] for result in own})
        lines += [f"## {part}", "", f"| {' and '.join(counts)} samples | seeds | {' | '.join(COLUMNS.values())} |"]
        lines += ["|---" * (len(COLUMNS) + 2) + "|"]
        for row in dict.fromkeys(result["row"] for result in own):
            values = [result for result in own if result["row"] == row]
            cells = [cell([float(value[metric]) for value in values if value[metric]]) for metric in COLUMNS]
            lines.append(f"| {row} | {len(values)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def cell(values: Sequence[float]) -> str:
    """A mean, and the standard deviation of one seed where there are several."""
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    return f"{mean:.3f}" + (f" ± {spread:.3f}" if len(values) > 1 else "")


def draw(results: Sequence[Mapping[str, str]], part: str, path: Path) -> None:
    """A panel for each metric, a point for each row with the standard deviation of one seed; dashed: `BASE` with its own."""
    own = [result for result in results if result["part"] == part]
    rows = list(dict.fromkeys(result["row"] for result in own))
    counts = {result["num_samples"] for result in own}
    base = [result for result in results if result["row"] == BASE and result["num_samples"] in counts]
    figure = Figure(figsize=(2.2 * len(COLUMNS), 0.3 * len(rows) + 1.2))
    for axes, (metric, title) in zip(figure.subplots(1, len(COLUMNS), sharey=True), COLUMNS.items(), strict=True):
        for place, row in enumerate(rows):
            mean, spread = mean_and_spread([float(result[metric]) for result in own if result["row"] == row])
            axes.errorbar(mean, place, xerr=spread, fmt="o", color="C0", capsize=3)
        if base:
            mean, spread = mean_and_spread([float(result[metric]) for result in base])
            axes.axvline(mean, color="gray", linestyle="--", linewidth=1)
            axes.axvspan(mean - spread, mean + spread, color="gray", alpha=0.2, linewidth=0)
        axes.set_title(title)
        axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    with storage.atomic(path) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """A mean, and the standard deviation of one seed, 0 where there is only one."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def main(cfg: DictConfig) -> None:
    """Sample and score what is not in results.csv yet, a line each; then write the table and a plot of each part."""
    out = Path(cfg.out)
    results = read_results(out / "results.csv")
    for part, row, seed, overrides in plan(cfg):
        settings = " ".join(overrides)
        if any(result["settings"] == settings and result["part"] == part for result in results):
            continue
        print(f"\n{part}: {row}, seed {seed}", flush=True)
        folder = out / "rows" / sha256(settings.encode()).hexdigest()[:12]
        scores = run_row(overrides, folder, cfg.device)
        values = [part, row, str(seed), str(cfg.num_samples), settings]
        results.append(dict(zip(KEYS, values, strict=True)) | {name: f"{value:.6g}" for name, value in scores.items()})
        write_results(out / "results.csv", results)
        if not cfg.keep_samples:
            for path in folder.glob("samples_*.npz"):
                path.unlink()
    text = table(results)
    with storage.atomic(out / "table.md") as file:
        file.write(text.encode())
    for part in dict.fromkeys(result["part"] for result in results):
        draw(results, part, out / f"{part}.png")
    print(f"\n{text}\nwrote {out / 'results.csv'}, table.md and a plot of each part")


if __name__ == "__main__":
    run(main, "study", StudyConfig)
