"""Scored runs as tables: runs whose scores compare stand together, with the mean and the spread over their seeds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from evaluations.metrics import COLUMNS
from evaluations.study.results import Run
from sag.build.configs import read
from sag.build.groups import CONFIGS

BASE = "no guidance"  # the row that plots compare the others with


class Basis(NamedTuple):
    """What runs must share if their scores are to be compared."""

    num_samples: int
    extractor: str
    reference: str

    def words(self) -> tuple[str, ...]:
        """Return each field as a title says it."""
        return f"{self.num_samples} samples", f"extractor {self.extractor}", f"reference {self.reference[:8] or 'unknown'}"


@dataclass(frozen=True)
class Table:
    """Scored runs that share a basis. The runs of a row differ only in their seeds.

    Example:
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.tables import arrange
        >>> facts = {"settings": {}, "scoring": {"extractor": "inception"}}
        >>> runs = [Run("a", "scales", "SAG", 0, 10, metrics={"fid": 1.0}, **facts)]
        >>> runs += [Run("b", "scales", "SAG", 1, 10, metrics={"fid": 2.0}, **facts)]
        >>> (table,) = arrange(runs)
        >>> table.mean["fid"].to_dict(), table.cells()["FID"].to_dict()
        ({'SAG': 1.5}, {'SAG': '1.500 ± 0.707'})

    Attributes:
        title: What the table is called.
        basis: What the runs share.
        runs: The runs; the first runs of the rows are in the order of the rows.
    """

    title: str
    basis: Basis
    runs: Sequence[Run]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The metrics of `COLUMNS` of every run, by its row; nan for no value."""
        return pd.DataFrame([run.metrics for run in self.runs], [run.row for run in self.runs], [*COLUMNS], dtype=float)

    @property
    def measured(self) -> list[str]:
        """The metrics that any run has."""
        return [metric for metric in COLUMNS if self.scores[metric].notna().any()]

    @property
    def seeds(self) -> "pd.Series[int]":
        """How many runs each row has."""
        return self.scores.groupby(level=0, sort=False).size()

    @cached_property
    def mean(self) -> pd.DataFrame:
        """The mean over the seeds of each row."""
        return self.scores.groupby(level=0, sort=False).mean()

    @cached_property
    def spread(self) -> pd.DataFrame:
        """The standard deviation from seed to seed of each row; nan for a single seed."""
        return self.scores.groupby(level=0, sort=False).std()

    @cached_property
    def published(self) -> pd.DataFrame:
        """What a paper says of each row."""
        values = [facts.get("values", {}) for facts in self._facts.values()]
        return pd.DataFrame(values, [*self._facts], [*COLUMNS], dtype=float)

    @property
    def comparable(self) -> "pd.Series[bool]":
        """Whether the published values of each row are of as many samples, scored by the same network."""
        found = [(facts.get("num_samples"), facts.get("extractor")) for facts in self._facts.values()]
        return pd.Series([basis == self.basis[:2] for basis in found], [*self._facts])

    @property
    def note(self) -> str:
        """What a reader must know of the scores and of the published values; nothing if there is nothing to know."""
        warnings = dict.fromkeys(warning for run in self.runs for warning in run.record.get("warnings", []))
        sentences = [f"Warning: {'; '.join(warnings)}."] if warnings else []
        published = {row: facts for row, facts in self._facts.items() if facts}
        if published and self.comparable[[*published]].all():
            sentences.append("In parentheses: published, and the difference.")
        elif published:
            counts = " or ".join(sorted({str(facts["num_samples"]) for facts in published.values()}))
            sentences.append(
                f"Published numbers (in parentheses) are of {counts} samples and are not comparable with these runs."
            )
        return " ".join(sentences)

    def cells(self) -> pd.DataFrame:
        """Return the text of the table, with the number of seeds in the first column.

        Returns:
            "mean ± spread (published, difference)" by row and title of the metric; the difference only if it is comparable.
        """
        differences = (self.mean - self.published).where(self.comparable, axis=0)
        published = _text(self.published, " ({:g}") + _text(differences, ", {:+.3f}") + _text(self.published, ")")
        scores = _text(self.mean, "{:.3f}").where(self.mean.notna(), "-") + _text(self.spread, " ± {:.3f}")
        cells = (scores + published).rename(columns=dict(COLUMNS)).rename_axis(f"{self.basis.num_samples} samples")
        cells.insert(0, "seeds", self.seeds.astype(str))
        return cells

    @property
    def _facts(self) -> dict[str, Mapping[str, Any]]:
        """What is published, by row; the latest run of a row counts."""
        return {run.row: run.published for run in self.runs}


def _text(values: pd.DataFrame, form: str) -> pd.DataFrame:
    return values.map(form.format).where(values.notna(), "")


def arrange(runs: Iterable[Run]) -> list[Table]:
    """Arrange scored runs in tables; failed ones are left out.

    Scores compare only if N, extractor and reference are the same. A table with runs of several kinds is therefore split, and
    the titles of its parts say how they differ: "sweep (2000 samples)", "sweep (500 samples)".

    Example:
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.tables import arrange
        >>> runs = [Run("k", "scales", "SAG", 0, count, {}, {"extractor": "inception"}, {"fid": 1.5}) for count in (10, 20)]
        >>> [table.title for table in arrange(runs)]
        ['scales (10 samples)', 'scales (20 samples)']

    Args:
        runs: Of any tables.

    Returns:
        The tables. Their rows have the order of the table's config; other rows follow in the order in which they were added.
    """
    kinds: dict[str, dict[Basis, list[Run]]] = {}
    for run in runs:
        if run.error is None:
            basis = Basis(run.num_samples, run.scoring["extractor"], run.scoring.get("reference", ""))
            kinds.setdefault(run.table, {}).setdefault(basis, []).append(run)
    found: dict[str, Table] = {}
    for name, parts in kinds.items():
        several = [len(set(values)) > 1 for values in zip(*parts, strict=True)]
        places = {row: place for place, row in enumerate(_row_names(name))}
        for basis, own in parts.items():
            differing = ", ".join(words for words, differs in zip(basis.words(), several, strict=True) if differs)
            title = f"{name} ({differing})" if differing else name
            while title in found:  # a table may be called like a part of another one
                title += "'"
            found[title] = Table(title, basis, sorted(own, key=lambda run: places.get(run.row, len(places))))
    return [*found.values()]


def _row_names(table: str) -> list[str]:
    """Return the rows of a table in the order of its config; none if there is no config of that name."""
    path = CONFIGS / f"table/{table}.yaml"
    return list(read(path).rows) if path.exists() else []


def differences(table: Table) -> Table:
    """Subtract, seed by seed, from the metrics of each row those of the row that has all of its techniques but one.

    Two such runs begin with the same noise, so that their difference varies less than either of them.

    Example:
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.tables import arrange, differences
        >>> settings = [{"guidance": {}}, {"guidance": {"sag": {"scale": 0.1}}}]
        >>> rows = zip(["none", "SAG"], settings, [5.0, 4.5])
        >>> runs = [Run(row, "t", row, 0, 10, own, {"extractor": "inception"}, {"fid": fid}) for row, own, fid in rows]
        >>> differences(*arrange(runs)).mean["fid"].to_dict()
        {'SAG minus none': -0.5}

    Args:
        table: The rows.

    Returns:
        A row for each pair, "SAG + CFG minus CFG", which tells what SAG adds.
    """
    runs = {_settings(run): run for run in table.runs}
    found = []
    for run in runs.values():
        for technique in run.settings.get("guidance", {}):
            base = runs.get(_settings(run, without=technique))
            if base is not None:
                metrics = {name: run.metrics[name] - base.metrics[name] for name in run.metrics if name in base.metrics}
                found.append(replace(run, row=f"{run.row} minus {base.row}", metrics=metrics, published={}))
    return Table(table.title, table.basis, found)


def _settings(run: Run, without: str | None = None) -> str:
    guidance = {name: settings for name, settings in run.settings.get("guidance", {}).items() if name != without}
    return json.dumps({**run.settings, "guidance": guidance}, sort_keys=True)


def base_of(table: Table, others: Iterable[Table]) -> Table | None:
    """Find the table with the row without guidance that a table is compared with.

    Example:
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.tables import arrange, base_of
        >>> scored = {"settings": {}, "scoring": {"extractor": "inception"}, "metrics": {"fid": 1.5}}
        >>> runs = [Run("a", "t", "SAG", 0, 10, **scored), Run("b", "main", "no guidance", 0, 10, **scored)]
        >>> tables = arrange(runs)
        >>> base_of(tables[0], tables).title
        'main'

    Args:
        table: The table.
        others: Where to look for that row if the table has none.

    Returns:
        A table whose scores compare and which has the row `BASE`; None if there is none.
    """
    return next((one for one in (table, *others) if one.basis == table.basis and BASE in one.mean.index), None)


def markdown(table: Table) -> str:
    """Write a table in Markdown, and below it what each technique adds, for rows with several seeds.

    Example:
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.tables import arrange, markdown
        >>> (table,) = arrange([Run("k", "scales", "SAG", 0, 10, {}, {"extractor": "inception"}, {"fid": 1.5})])
        >>> print(markdown(table))
        | 10 samples | seeds | FID | sFID | IS | precision | recall | agreement |
        | --- | --- | --- | --- | --- | --- | --- | --- |
        | SAG | 1 | 1.500 | - | - | - | - | - |
        <BLANKLINE>

    Args:
        table: The table.

    Returns:
        The text.
    """
    text = _grid(table.cells()) + (f"\n{table.note}\n" if table.note else "")
    added = differences(table)
    paired = added.cells()[added.seeds > 1]  # a single seed has no spread
    return text if paired.empty else f"{text}\nSeed by seed:\n\n{_grid(paired)}"


def as_text(tables: Iterable[Table]) -> str:
    """Write tables for a terminal, with their titles.

    Example:
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.tables import arrange, as_text
        >>> (table,) = arrange([Run("k", "scales", "SAG", 0, 10, {}, {"extractor": "inception"}, {"fid": 1.5})])
        >>> print(as_text([table]).split("|")[0].strip())
        scales

    Args:
        tables: The tables.

    Returns:
        The text.
    """
    return "\n".join(f"\n{table.title}\n\n{markdown(table)}" for table in tables)


def _grid(cells: pd.DataFrame) -> str:
    lines = [[cells.index.name, *cells.columns], ["---"] * (1 + cells.shape[1]), *cells.reset_index().to_numpy()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(table: Table) -> str:
    r"""Write a table for LaTeX's package booktabs, with the metrics that were measured.

    Example:
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.tables import arrange, latex
        >>> (table,) = arrange([Run("k", "scales", "SAG", 0, 10, {}, {"extractor": "inception"}, {"fid": 1.5})])
        >>> latex(table).splitlines()[5]
        'SAG & 1 & 1.500 \\\\'

    Args:
        table: The table.

    Returns:
        The text.
    """
    cells = table.cells()[["seeds", *(COLUMNS[metric] for metric in table.measured)]]
    text = cells.reset_index().to_latex(index=False, escape=True, column_format=f"l{'r' * cells.shape[1]}")
    return f"% {table.title}\n{text}".replace("±", r"$\pm$")


def as_csv(runs: Sequence[Run]) -> str:
    """Write runs as comma-separated values.

    Example:
        >>> from evaluations.study.results import Run
        >>> from evaluations.study.tables import as_csv
        >>> print(as_csv([Run("k", "scales", "SAG", 0, 10, {}, {"extractor": "inception"}, {"fid": 1.5})]))
        table,row,seed,num_samples,fid,seconds,commit,device,extractor,error
        scales,SAG,0,10,1.5,,,,inception,
        <BLANKLINE>

    Args:
        runs: The runs, those that failed among them.

    Returns:
        A line with the names, then a line for each run.
    """
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    lines = [
        {
            **{key: getattr(run, key) for key in ("table", "row", "seed", "num_samples", "seconds", "error")},
            **{name: f"{value:.6g}" for name, value in run.metrics.items()},
            **{key: run.record.get(key) for key in ("commit", "device")},
            "extractor": run.scoring.get("extractor"),
        }
        for run in runs
    ]
    columns = ["table", "row", "seed", "num_samples", *names, "seconds", "commit", "device", "extractor", "error"]
    return pd.DataFrame(lines, columns=columns, dtype=object).to_csv(index=False)
