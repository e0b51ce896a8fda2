"""Rows: what is sampled and how it is scored, and the run that comes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import evaluations.build
import sag
from evaluations.metrics import COLUMNS
from evaluations.study.results import Run, check_list, key_of
from sag.build.configs import Config, merged, plain
from sag.build.groups import choices, load_config
from sag.build.messages import unknown_choice
from sag.build.tables import published_numbers, row_settings
from sag.distributed import Process, Stop

BAR = "{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total_fmt} images, {rate_fmt}, {remaining} left"
LOOK = 4  # at most so many samples are looked at through SAG


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Example:
        >>> from evaluations.study.rows import compose_row
        >>> small = ["num_samples=4", "batch_size=4", "sampler.steps=2"]
        >>> row = compose_row("scales", "SAG", ["guidance=[sag]", *small], scoring=["metrics=[is]"])
        >>> run = row.run("sag", device="cpu")
        >>> run.table, run.row, run.num_samples, list(run.metrics)
        ('scales', 'SAG', 4, ['is'])

    Attributes:
        table: The name of its table.
        name: Its own name.
        cfg: What is sampled, composed from configs/sample.yaml.
        scoring: How it is scored: overrides of configs/evaluate.yaml.
    """

    table: str
    name: str
    cfg: Config
    scoring: Sequence[str] = ()

    @property
    def key(self) -> str:
        """A hash of everything that determines the scores."""
        return key_of(sag.build.identity(self.cfg), self.scoring)

    def run(
        self,
        out: str | Path,
        device: str = "auto",
        *,
        process: Process | None = None,
        stop: Stop | None = None,
        progress: bool = False,
    ) -> Run | None:
        """Sample into a folder and score there. What is there already is not made again.

        Args:
            out: The folder.
            device: "cpu", "cuda", "cuda:N", or "auto".
            process: This process among those that share the work; None is as the launcher says.
            stop: What asks this process to stop; None does not react to signals.
            progress: Whether to show progress bars on stderr.

        Returns:
            The run; None in all processes but the main one.

        Raises:
            ValueError: If something cannot be sampled or scored.
            OSError: If a file cannot be read, fetched or written.
            FloatingPointError: If the values of a sample do not stay finite.
        """
        process, folder = process or Process.current(), Path(out)
        job = sag.build.job(merged(self.cfg, device=device))
        shown = progress and process.main
        with tqdm(desc=self.name, total=len(job.indices), unit="image", bar_format=BAR, disable=not shown) as bar:
            sampled = sag.sampling.run(job, folder, process, stop, lambda done: bar.update(done - bar.n))
        scores = folder / f"scores-{self.key[:8]}.json"
        cfg = sag.compose("evaluate", _last([f"metrics=[{','.join(COLUMNS)}]", "batch_size=250", *self.scoring]))
        scored = evaluations.build.score(merged(cfg, samples=sampled.path, out=str(scores), device=device), process, progress)
        if scored is None:
            return None
        made, indices = sampled.record, list(job.indices)
        published: Any = plain(self.cfg.published) or {}
        return Run(
            key=self.key,
            table=self.table,
            row=self.name,
            seed=self.cfg.seed,
            num_samples=len(indices),
            settings=sag.build.identity(self.cfg),
            scoring=scored.identity,
            metrics=scored.values,
            published=published,
            record={key: made[key] for key in ("versions", "commit", "device", "hosts")}
            | {"warnings": scored.record["warnings"]},
            seconds=made["seconds"] if made["indices"] == indices else None,  # else the record is of another length
            folder=str(out),
        )

    def moments(self, device: str = "auto") -> "list[sag.sampling.Moment]":
        """Look through SAG at the first samples.

        Args:
            device: Where they are made.

        Returns:
            Ten moments, evenly spread over the steps.

        Raises:
            ValueError: If the row has no SAG.
        """
        first = list(range(min(LOOK, self.cfg.num_samples)))
        (found,) = sag.sampling.moments(sag.build.job(merged(self.cfg, indices=first, device=device, compile=False))).values()
        return found


def compose_row(
    table: str,
    name: str,
    overrides: Sequence[str],
    scoring: Sequence[str] = (),
    published: Mapping[str, Any] | None = None,
) -> Row:
    """Compose a row.

    Example:
        >>> from evaluations.study.rows import compose_row
        >>> compose_row("scales", "SAG", ["guidance=[sag]", "seed=1", "seed=2"]).cfg.seed
        2

    Args:
        table: The name of its table.
        name: Its own name.
        overrides: Overrides of configs/sample.yaml; if a key is overridden twice, the last one wins.
        scoring: Overrides of configs/evaluate.yaml.
        published: What a paper says of the row; None is what the overrides say, if they choose an experiment.

    Returns:
        The row.

    Raises:
        ValueError: If an override does not fit.
    """
    check_list("overrides", overrides)
    check_list("scoring", scoring)
    cfg = sag.compose("sample", _last(overrides))
    return Row(table, name, cfg if published is None else merged(cfg, published=published), scoring)


def table_rows(
    table: str | Mapping[str, Any],
    names: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    num_samples: int | None = None,
    common: Sequence[str] = (),
) -> list[Row]:
    """Compose the rows of a table.

    Example:
        >>> from evaluations.study.rows import table_rows
        >>> [(row.name, row.cfg.seed) for row in table_rows("fashion", ["SAG", "CFG"], seeds=[0, 1], num_samples=100)]
        [('SAG', 0), ('CFG', 0), ('SAG', 1), ('CFG', 1)]

    Args:
        table: The name of a file in configs/table/, or the content of one.
        names: Which rows; None is all of them.
        seeds: The seeds; None is those of the table.
        num_samples: How many samples each row has; None is as many as the table says.
        common: Overrides of configs/sample.yaml for all rows, which win over those of the table and of its rows.

    Returns:
        The rows, all of the first seed before any of the second.

    Raises:
        ValueError: If there is no such table or row, or an override does not fit.
    """
    for key, value in (("names", names), ("seeds", seeds), ("common", common)):
        check_list(key, value)
    facts = _read_table(table) if isinstance(table, str) else table
    wanted = list(facts["rows"]) if names is None else list(names)
    unknown = [name for name in wanted if name not in facts["rows"]]
    if unknown:
        raise ValueError(f"table {facts['name']} has no row {unknown[0]!r}; it has {', '.join(facts['rows'])}")
    wanted_seeds = facts["seeds"] if seeds is None else seeds
    if not wanted or not wanted_seeds:
        raise ValueError(f"rows and seeds must not be empty, got {wanted} and {list(wanted_seeds)}")
    count = facts["num_samples"] if num_samples is None else num_samples
    size = [] if count is None else [f"num_samples={count}"]
    return [
        compose_row(
            facts["name"],
            name,
            [*facts["common"], *row_settings(facts, name), *common, f"seed={seed}", *size],
            facts["scoring"],
            published_numbers(facts, name),
        )
        for seed in wanted_seeds
        for name in wanted
    ]


def _read_table(name: str) -> Config:
    table = load_config("table", name)
    if table is None:
        raise ValueError(unknown_choice("table", name, choices("table")))
    return table


def _last(overrides: Sequence[str]) -> list[str]:
    return list({override.split("=", 1)[0]: override for override in overrides}.values())
