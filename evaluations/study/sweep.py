"""Points of a sweep: rows named by what is overridden, sampled and scored one at a time, or recorded as failed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from evaluations.study.results import Results, Run
from evaluations.study.rows import Row
from evaluations.study.tables import Table, arrange
from sag.build import SampleConfig, out_folder
from sag.build.configs import Config, plain, selected
from sag.distributed import Process, Stop

PLACES = {"device", "out", "name", "scoring", "objective", "results"}
UNNAMED = PLACES | {"seed", "num_samples", "batch_size", "precision", "compile"}
"""Keys that are not part of a point's name."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swept:
    """The points of a sweep.

    Attributes:
        tables: Those that were scored.
        failed: Those that failed.
    """

    tables: list[Table]
    failed: list[Run]


def point(name: str, cfg: Config, overrides: Sequence[str], scoring: Sequence[str] = ()) -> Row:
    """Make a row of a point.

    Example:
        >>> import sag
        >>> from evaluations.study.sweep import point
        >>> overrides = ["guidance.sag.scale=0.5", "num_samples=100"]
        >>> point("scales", sag.compose("sample", overrides), overrides).name
        'guidance.sag.scale=0.5'

    Args:
        name: The name of the sweep.
        cfg: What is sampled, with the keys of configs/sample.yaml and any others.
        overrides: What the sweep overrides.
        scoring: Overrides of configs/evaluate.yaml.
    """
    own = selected(cfg, [field.name for field in fields(SampleConfig)])
    named = " ".join(override for override in overrides if override.split("=", 1)[0] not in UNNAMED)
    return Row(name, named or "default", own, scoring)


def score_point(
    row: Row,
    results: str | Path,
    device: str = "auto",
    *,
    process: Process | None = None,
    stop: Stop | None = None,
    progress: bool = False,
) -> Run | None:
    """Sample and score a point, unless it is among the results of this sweep already.

    Example:
        >>> import sag
        >>> from evaluations.study.sweep import point, score_point, summarise
        >>> for scale in (0.0, 0.5):
        ...     changes = [f"guidance.sag.scale={scale}", "num_samples=4", "sampler.steps=2"]
        ...     row = point("scales", sag.compose("sample", [*changes, f"out=scale_{scale}"]), changes, ["metrics=[fid]"])
        ...     run = score_point(row, "results.sqlite", device="cpu")
        >>> list(summarise("scales", "results.sqlite").tables[0].mean.index)
        ['guidance.sag.scale=0.0 sampler.steps=2', 'guidance.sag.scale=0.5 sampler.steps=2']

    Args:
        row: The point; it is sampled into `row.cfg.out`, or a folder under outputs/ that follows from its settings.
        results: The SQLite file of the results.
        device: See `Row.run`.
        process: See `Row.run`.
        stop: See `Row.run`.
        progress: See `Row.run`.

    Returns:
        The run; None in all processes but the main one, if it is new.

    Raises:
        ValueError: See `Row.run`.
        OSError: See `Row.run`.
        FloatingPointError: See `Row.run`.
    """
    store = Results(results)
    for run in store.runs(row.scoring):
        if run.error is None and (run.table, run.key) == (row.table, row.key):
            return run
    logger.info("%s: %s", row.table, row.name)
    found = row.run(out_folder(row.cfg), device, process=process, stop=stop, progress=progress)
    if found is not None:
        store.add(found)
    return found


def record_failure(row: Row, results: str | Path, error: str) -> None:
    """Add a point that failed to the results.

    Example:
        >>> import sag
        >>> from evaluations.study.sweep import point, record_failure, summarise
        >>> overrides = ["guidance.sag.scale=1e9"]
        >>> row = point("scales", sag.compose("sample", overrides), overrides)
        >>> record_failure(row, "results.sqlite", "step 3 of 50 gave values that are not finite")
        >>> [run.row for run in summarise("scales", "results.sqlite").failed]
        ['guidance.sag.scale=1e9']

    Args:
        row: The point.
        results: The SQLite file of the results.
        error: Why it failed.
    """
    settings = plain(row.cfg)
    Results(results).add(Run(row.key, row.table, row.name, row.cfg.seed, row.cfg.num_samples, settings, error=error))


def summarise(name: str, results: str | Path, since: float = 0.0) -> Swept:
    """Collect the points of a sweep.

    Example:
        >>> from evaluations.study.results import Results, Run
        >>> from evaluations.study.sweep import summarise
        >>> Results("results.sqlite").add(Run("k", "scales", "SAG", 0, 10, {}, {"extractor": "inception"}, {"fid": 1.5}))
        >>> [table.title for table in summarise("scales", "results.sqlite").tables]
        ['scales']

    Args:
        name: The name of the sweep.
        results: The SQLite file of the results.
        since: Leave out points that failed before this time, in seconds since 1970.

    Returns:
        Its tables, and the points that failed and were not scored later.
    """
    own = [run for run in Results(results).runs() if run.table == name]
    return Swept(arrange(own), [run for run in own if run.error is not None and run.time >= since])
