"""Tables (Markdown, LaTeX, CSV), plots and one self-contained page of the scored runs: python scripts/report.py"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from evaluations.results import Results, Run
from sag import storage
from scripts import tables
from scripts.common import run
from scripts.page import page
from scripts.rows import COLUMNS
from scripts.tables import Line


@dataclass
class ReportConfig:
    """The keys of configs/report.yaml and their types; the values are there."""

    results: str = MISSING
    tables: list[str] | None = None
    num_samples: int | None = None
    out: str = MISSING


ConfigStore.instance().store("report_schema", ReportConfig)


def chosen(cfg: DictConfig) -> list[Run]:
    """The runs asked for.

    Raises:
        ValueError: none.
    """
    runs = Results(Path(cfg.results)).runs()
    if not runs:
        raise ValueError(f"there are no results in {cfg.results}; scripts/reproduce.py and scripts/sweep.py put them there")
    known = dict.fromkeys(found.table for found in runs)
    for name in cfg.tables or []:
        if name not in known:
            raise ValueError(f"there are no results of table {name!r} in {cfg.results}; there are of {', '.join(known)}")
    own = [found for found in runs if cfg.tables is None or found.table in cfg.tables]
    if cfg.num_samples is not None:
        own = [found for found in own if found.num_samples == cfg.num_samples]
    if not own:
        counts = ", ".join(sorted({str(found.num_samples) for found in runs}))
        raise ValueError(f"no run has num_samples={cfg.num_samples}; there are runs of {counts}")
    return own


def latex(name: str, table: Sequence[Line]) -> str:
    """A booktabs table with the cells of `tables.cell`."""
    columns = tables.measured(table)
    heads = [f"{table[0].num_samples} samples", "seeds", *(COLUMNS[metric] for metric in columns)]
    rows = [[line.row.replace("_", r"\_"), str(len(line.runs)), *(tables.cell(line, m) for m in columns)] for line in table]
    body = [" & ".join(cells).replace("±", r"$\pm$") + r" \\" for cells in [heads, *rows]]
    start = [f"% {name}", f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", "\\toprule", body[0], "\\midrule"]
    return "\n".join([*start, *body[1:], "\\bottomrule", "\\end{tabular}"]) + "\n"


def as_csv(runs: Sequence[Run]) -> str:
    """A line for each run."""
    names = list(dict.fromkeys(name for found in runs for name in found.metrics))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "seed", "num_samples", *names, "seconds", "commit", "device", "extractor", "error"])
    for found in runs:
        metrics = [f"{found.metrics[name]:.6g}" if name in found.metrics else "" for name in names]
        made = [found.record.get("commit"), found.record.get("device"), found.scoring.get("extractor"), found.error]
        writer.writerow([found.table, found.row, found.seed, found.num_samples, *metrics, found.seconds, *made])
    return text.getvalue()


def base_of(found: Mapping[str, Sequence[Line]], table: Sequence[Line]) -> Line | None:
    """The row without guidance to draw a table against: its own, or that of another table whose scores compare with its own."""
    own = tables.basis(table[0].runs[0])
    lines = [*table, *(line for other in found.values() for line in other)]
    return next((line for line in lines if line.row == tables.BASE and tables.basis(line.runs[0]) == own), None)


def file_names(titles: Iterable[str]) -> dict[str, str]:
    """A name for the plot of each title: letters that any file system takes, and no name twice, small letters or capitals."""
    names: dict[str, str] = {}
    for title in titles:
        name = plain = re.sub(r"[^\w.,() -]+", "_", title).strip(". ") or "table"
        taken = {other.lower() for other in names.values()}
        number = 2
        while name.lower() in taken:
            name, number = f"{plain}-{number}", number + 1
        names[title] = name
    return names


def main(cfg: DictConfig) -> None:
    """Write everything into `out`."""
    runs = chosen(cfg)
    found = tables.lines(runs)
    texts = {
        "tables.md": "\n".join(f"## {name}\n\n{tables.markdown(table)}" for name, table in found.items()),
        "tables.tex": "\n".join(latex(name, table) for name, table in found.items()),
        "results.csv": as_csv(runs),
        "report.html": page(found, [failed for failed in runs if failed.error is not None]),
    }
    folder = storage.LocalFolder(Path(cfg.out))
    settings: Any = OmegaConf.to_container(cfg)
    settings = {key: value for key, value in settings.items() if key != "out"}
    storage.claim_files(folder, settings, [*texts, *(f"{name}.png" for name in found)])
    for name, text in texts.items():
        folder.write(name, text.encode())
    for title, name in file_names(found).items():
        tables.draw(found[title], base_of(found, found[title]), folder.path / f"{name}.png")
    print(f"wrote {cfg.out}/report.html, {', '.join(list(texts)[:3])} and a plot of each table")


if __name__ == "__main__":
    run(main, "report", ReportConfig)
