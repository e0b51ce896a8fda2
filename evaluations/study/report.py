"""A report of scored runs: tables in Markdown, LaTeX and CSV, plots, and one page."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluations.metrics import COLUMNS
from evaluations.study import tables as forms
from evaluations.study.page import page
from evaluations.study.results import Results, Run
from evaluations.study.tables import Line
from sag import storage


@dataclass(frozen=True)
class Report:
    """What `write_report` wrote.

    Attributes:
        runs: The runs in the report, those that failed among them.
        tables: The rows of each table, by its title.
        files: The files: tables.md, tables.tex, results.csv, report.html and a plot of each table.
    """

    runs: list[Run]
    tables: dict[str, list[Line]]
    files: list[Path]


def write_report(
    results: str | Path, out: str | Path, tables: Sequence[str] | None = None, num_samples: int | None = None
) -> Report:
    """Write tables, plots and a page of scored runs.

    Example:
        >>> from evaluations.study.results import Results, Run
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
    runs = choose_runs(Path(results), tables, num_samples)
    found = forms.lines(runs)
    texts = {
        "tables.md": "\n".join(f"## {name}\n\n{forms.markdown(table)}" for name, table in found.items()),
        "tables.tex": "\n".join(latex(name, table) for name, table in found.items()),
        "results.csv": as_csv(runs),
        "report.html": page(found, [failed for failed in runs if failed.error is not None]),
    }
    folder, plots = storage.LocalFolder(Path(out)), file_names(found)
    settings = {"results": str(results), "tables": None if tables is None else list(tables), "num_samples": num_samples}
    files = [*texts, *plots.values()]
    storage.claim_files(folder, settings, files)
    for name, text in texts.items():
        folder.write(name, text.encode())
    for title, name in plots.items():
        forms.draw(found[title], base_of(found, found[title]), folder.path / name)
    return Report(runs, found, [folder.path / name for name in files])


def choose_runs(results: Path, tables: Sequence[str] | None, num_samples: int | None) -> list[Run]:
    """Return the runs that a report is about.

    Args:
        results: The SQLite file.
        tables: The names of their tables; None is all of them.
        num_samples: How many samples they have; None is any number.

    Returns:
        The runs, in the order in which they were added.

    Raises:
        ValueError: There are none.
    """
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


def latex(name: str, table: Sequence[Line]) -> str:
    """A booktabs table with the cells of `tables.cell`."""
    columns = forms.measured(table)
    heads = [f"{table[0].num_samples} samples", "seeds", *(COLUMNS[metric] for metric in columns)]
    rows = [[line.row.replace("_", r"\_"), str(len(line.runs)), *(forms.cell(line, m) for m in columns)] for line in table]
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
    own = forms.basis(table[0].runs[0])
    lines = [*table, *(line for other in found.values() for line in other)]
    return next((line for line in lines if line.row == forms.BASE and forms.basis(line.runs[0]) == own), None)


def file_names(titles: Iterable[str]) -> dict[str, str]:
    """A name for the plot of each title: letters that any file system takes, and no name twice, small letters or capitals."""
    names: dict[str, str] = {}
    for title in titles:
        name = plain = re.sub(r"[^\w.,() -]+", "_", title).strip(". ") or "table"
        taken = {other.lower() for other in names.values()}
        number = 2
        while f"{name}.png".lower() in taken:
            name, number = f"{plain}-{number}", number + 1
        names[title] = f"{name}.png"
    return names
