"""A report of scored runs: tables in Markdown, LaTeX and CSV, plots, and one page."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluations.study.page import page
from evaluations.study.pictures import draw_table
from evaluations.study.results import Results, Run, check_list
from evaluations.study.tables import Table, arrange, as_csv, base_of, latex, markdown
from sag import storage


@dataclass(frozen=True)
class Report:
    """What `write_report` wrote.

    Attributes:
        runs: The runs in the report, those that failed among them.
        tables: The tables.
        files: The files: tables.md, tables.tex, results.csv, report.html and a plot of each table.
    """

    runs: list[Run]
    tables: list[Table]
    files: list[Path]


def write_report(
    results: str | Path, out: str | Path, tables: Sequence[str] | None = None, num_samples: int | None = None
) -> Report:
    """Write tables, plots and a page of scored runs.

    Example:
        >>> from evaluations.study.results import Results, Run, check_list
        >>> from evaluations.study.report import write_report
        >>> scored = {"scoring": {"extractor": "inception"}, "metrics": {"fid": 4.2}}
        >>> Results("results.sqlite").add(Run("key", "scales", "SAG", seed=0, num_samples=10, settings={}, **scored))
        >>> [file.name for file in write_report("results.sqlite", "report").files]
        ['tables.md', 'tables.tex', 'results.csv', 'report.html', 'scales.png']

    Args:
        results: The SQLite file with the runs.
        out: The folder for the report.
        tables: The names of the tables in the report; None is all of them.
        num_samples: Leave out runs with another number of samples; None keeps all.

    Returns:
        The runs, tables and files.

    Raises:
        ValueError: There are no such runs, or a file of somebody else is in the way.
    """
    check_list("tables", tables)
    runs = _choose_runs(Path(results), tables, num_samples)
    found = arrange(runs)
    texts = {
        "tables.md": "\n".join(f"## {table.title}\n\n{markdown(table)}" for table in found),
        "tables.tex": "\n".join(latex(table) for table in found),
        "results.csv": as_csv(runs),
        "report.html": page(found, [failed for failed in runs if failed.error is not None]),
    }
    folder, plots = storage.LocalFolder(Path(out)), _file_names(table.title for table in found)
    settings = {"results": str(results), "tables": None if tables is None else list(tables), "num_samples": num_samples}
    files = [*texts, *plots.values()]
    storage.claim_files(folder, settings, files)
    for name, text in texts.items():
        folder.write(name, text.encode())
    for table in found:
        draw_table(table, base_of(table, found), folder.path / plots[table.title])
    return Report(runs, found, [folder.path / name for name in files])


def _choose_runs(results: Path, tables: Sequence[str] | None, num_samples: int | None) -> list[Run]:
    """Return the runs that a report is about; raise a ValueError if there are none."""
    runs = Results(results).runs()
    if not runs:
        raise ValueError(f"there are no results in {results}; scripts/reproduce.py and scripts/sweep.py put them there")
    known = dict.fromkeys(found.table for found in runs)
    for name in tables or []:
        if name not in known:
            raise ValueError(f"there are no results of table {name!r} in {results}; there are of {', '.join(known)}")
    own = [found for found in runs if tables is None or found.table in tables]
    if num_samples is not None:
        own = [found for found in own if found.num_samples == num_samples]
    if not own:
        counts = ", ".join(sorted({str(found.num_samples) for found in runs}))
        raise ValueError(f"no run has num_samples={num_samples}; there are runs of {counts}")
    return own


def _file_names(titles: Iterable[str]) -> dict[str, str]:
    """Name the plot of each title in letters that any file system takes; no two names differ in capitals only."""
    names: dict[str, str] = {}
    for title in titles:
        name = plain = re.sub(r"[^\w.,() -]+", "_", title).strip(". ") or "table"
        taken = {other.lower() for other in names.values()}
        number = 2
        while f"{name}.png".lower() in taken:
            name, number = f"{plain}-{number}", number + 1
        names[title] = f"{name}.png"
    return names
