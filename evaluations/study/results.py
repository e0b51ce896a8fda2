"""Scored runs, in one SQLite file that several processes may append to."""

import contextlib
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from sag.records import fingerprint, modern
from sag.storage import atomic, settings_hash

PATIENCE = 30.0  # seconds to wait while another process writes


@dataclass(frozen=True)
class Run:
    """A run that was scored, or that failed.

    Attributes:
        key: A hash of everything that determines the scores.
        table: The name of its table.
        row: The name of its row; a later run with the same key, table and row replaces the earlier one.
        seed: The seed of the samples.
        num_samples: How many samples there are.
        settings: The settings of the samples.
        scoring: Extractor, reference and settings of the metrics.
        metrics: The scores, by names without N.
        error: Why there are no scores.
        published: What a paper says: source, extractor, num_samples, values, ...
        record: Versions, commit, device, hosts and warnings.
        seconds: The time that sampling took, of all processes together.
        folder: Where the samples are or were.
        time: When the run was added, in seconds since 1970.
    """

    key: str
    table: str
    row: str
    seed: int
    num_samples: int
    settings: Mapping[str, Any]
    scoring: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    published: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    folder: str | None = None
    time: float = field(default_factory=time.time)


def check_list(name: str, value: object) -> None:
    """Raise a ValueError unless an argument is None or a list; a string would be read letter by letter."""
    if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise ValueError(f"{name} must be a list, got {value!r}")


def key_of(settings: Mapping[str, Any], scoring: Sequence[str]) -> str:
    """Return a hash of everything that determines scores.

    Args:
        settings: Those of the samples.
        scoring: Overrides of configs/evaluate.yaml.
    """
    return sha256("\n".join([settings_hash(settings), *sorted(scoring)]).encode()).hexdigest()


def _modern(run: Run, scorings: Iterable[Sequence[str]]) -> Run:
    """Return a run in its present form."""
    settings, key = modern(run.settings), run.key
    for scoring in scorings if settings != run.settings else ():
        if key == sha256("\n".join([fingerprint(run.settings), *sorted(scoring)]).encode()).hexdigest():  # its former key
            key = key_of(settings, scoring)
    return replace(run, key=key, settings=settings)


_COLUMNS = [f.name for f in fields(Run)]
_AS_JSON = {"settings", "scoring", "metrics", "published", "record"}


class Results:
    """The runs in a file, which is made when the first run is added.

    Example:
        >>> from evaluations.study.results import Results, Run
        >>> results = Results("results.sqlite")
        >>> results.add(Run("k", "scales", "SAG", seed=0, num_samples=10, settings={}, metrics={"fid": 1.5}))
        >>> [run.metrics["fid"] for run in results.runs()]
        [1.5]

    Args:
        path: The SQLite file.

    Raises:
        ValueError: From any method, if the file is something else, or another process holds it for too long.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def add(self, run: Run) -> None:
        """Add a run, whole or not at all."""
        values = asdict(run)
        if abs(run.seed) >= 2**63:  # more than SQLite's integers hold
            values["seed"] = str(run.seed)
        row = [json.dumps(values[name]) if name in _AS_JSON else values[name] for name in _COLUMNS]
        self._create()
        with self._open() as file:
            file.execute(f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * len(row))})", row)

    def runs(self, *scorings: Sequence[str]) -> list[Run]:
        """Return all runs, in the order in which they were added.

        Args:
            scorings: Overrides of configs/evaluate.yaml with which rows are scored. A run that a former version of this library
                recorded has the key that it would have now if it was scored so.
        """
        if not self.path.exists():
            return []
        names = ", ".join(f'"{name}"' for name in _COLUMNS)
        with self._open() as file:
            rows = file.execute(f"SELECT {names} FROM runs ORDER BY time").fetchall()
        read: dict[str, Callable[[Any], Any]] = {"seed": int, **dict.fromkeys(_AS_JSON, json.loads)}
        found = [Run(**{n: read[n](v) if n in read else v for n, v in zip(_COLUMNS, row, strict=True)}) for row in rows]
        return [_modern(run, scorings) for run in found]

    def _create(self) -> None:
        """Write an empty file, whole or not at all, unless there is one: an empty file of somebody else stays empty."""
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            empty = Path(folder) / "results.sqlite"
            with contextlib.closing(sqlite3.connect(empty)) as file:
                columns = ", ".join(f'"{name}"' for name in _COLUMNS)
                file.execute(f'CREATE TABLE runs ({columns}, PRIMARY KEY ("key", "table", "row"))')
            with contextlib.suppress(FileExistsError), atomic(self.path, replace=False) as target:
                target.write(empty.read_bytes())

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=PATIENCE)) as file, file:
                found = [name for _, name, *_ in file.execute("PRAGMA table_info(runs)")]
                if found != _COLUMNS:
                    raise sqlite3.DatabaseError("it has no table of runs")
                yield file
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ValueError(
                    f"{self.path} has been held by another process for {PATIENCE:.0f} s; the same command continues later"
                ) from error
            raise ValueError(f"{self.path} cannot be used ({error}); give another results=") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is no file of results ({error}); give another results=") from error
