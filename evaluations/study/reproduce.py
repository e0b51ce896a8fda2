"""Sample and score rows that are not among the results yet."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from evaluations.study.pictures import draw_strip
from evaluations.study.results import Results, Run
from evaluations.study.rows import Row
from evaluations.study.tables import Table, arrange
from sag import storage
from sag.build import identity
from sag.distributed import Process, Stop
from sag.records import as_recorded, former_folder, shared_key

MASKS = "masks.png"  # what SAG saw of a row's first samples
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduced:
    """Rows that are sampled and scored.

    Attributes:
        runs: The scored runs, in the order in which they were added to the results.
        tables: The same as tables.
        new: The runs that were not among the results before.
    """

    runs: list[Run]
    tables: list[Table]
    new: list[Run]


def reproduce(
    rows: Iterable[Row],
    results: str | Path,
    out: str | Path,
    device: str = "auto",
    *,
    keep_samples: bool = False,
    process: Process | None = None,
    stop: Stop | None = None,
    progress: bool = False,
) -> Reproduced | None:
    """Sample and score rows. A row that is among the results already, in whatever table, is not run again.

    Example:
        >>> from evaluations.study.reproduce import reproduce
        >>> from evaluations.study.rows import compose_row
        >>> small = ["num_samples=4", "batch_size=4", "sampler.steps=2"]
        >>> rows = [compose_row("mine", name, [f"guidance=[{name}]", *small], ["metrics=[fid]"]) for name in ("sag", "cfg")]
        >>> reproduced = reproduce(rows, "results.sqlite", "rows", device="cpu")
        >>> [run.row for run in reproduced.new], reproduced.tables[0].measured
        (['sag', 'cfg'], ['fid'])
        >>> reproduce(rows, "results.sqlite", "rows", device="cpu").new
        []

    Args:
        rows: The rows.
        results: The SQLite file of the results.
        out: Each row has a folder in this one.
        device: "cpu", "cuda", "cuda:N", or "auto".
        keep_samples: Whether the samples stay when they are scored.
        process: This process among those that share the work; None is as the launcher says.
        stop: What asks this process to stop; None does not react to signals.
        progress: Whether to show progress bars on stderr.

    Returns:
        The runs and tables of the rows; None in all processes but the main one.

    Raises:
        ValueError: If a row cannot be sampled or scored, or a file of somebody else is in the way.
        OSError: If a file cannot be read, fetched or written.
        FloatingPointError: If the values of a sample do not stay finite.
    """
    store, process = Results(results), process or Process.current()
    rows = list(rows)
    asked, new, scorings = set(), [], {tuple(row.scoring) for row in rows}
    for row in rows:
        asked.add((row.key, row.table, row.name))
        same = [run for run in store.runs(*scorings) if run.error is None and run.key == row.key]
        if (row.table, row.name) in {(run.table, run.row) for run in same}:
            continue
        if same:  # another table has the same settings
            new.append(replace(same[0], table=row.table, row=row.name))
            if process.main:
                store.add(new[-1])
            continue
        logger.info("%s: %s, seed %d", row.table, row.name, row.cfg.seed)
        settings, path = identity(row.cfg), Path(out) / row.key[:12]
        former = None if path.exists() else former_folder(Path(out), "*", settings)
        folder = storage.LocalFolder(former or path)
        key = shared_key(as_recorded(folder, settings))
        storage.refuse_foreign(folder, [MASKS], storage.own_files(folder, key))
        run = row.run(folder.path, device, process=process, stop=stop, progress=progress)
        if run is None:
            continue
        if "sag" in row.cfg.guidance:
            storage.add_own_file(folder, key, MASKS)
            draw_strip(row.moments(device), folder.path / MASKS, ["mask", "degraded"])  # for the report
        store.add(run)
        new.append(run)
        if not keep_samples:
            storage.remove_own_files(folder, key, (name for name in folder.names() if name.startswith("samples_")))
    if not process.main:
        return None
    runs = [run for run in store.runs(*scorings) if (run.key, run.table, run.row) in asked]
    return Reproduced(runs, arrange(runs), new)
