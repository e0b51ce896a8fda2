"""Rows that begin with the same noise, scored and drawn beside each other."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluations.study.pictures import draw_samples, draw_strip, draw_table
from evaluations.study.results import Run, check_list
from evaluations.study.rows import compose_row
from evaluations.study.tables import Table, arrange, base_of, markdown
from sag import storage
from sag.sampling.shards import read_samples

SHOWN = 10  # samples of each row in the picture
FILES = ("samples.png", "masks.png", "scores.png", "table.md")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """Rows beside each other.

    Attributes:
        runs: The run of each row, in the order of the rows.
        table: Their scores.
        files: The pictures and the table.
    """

    runs: list[Run]
    table: Table
    files: list[Path]


def compare(
    rows: Mapping[str, Sequence[str]],
    out: str | Path,
    common: Sequence[str] = (),
    num_samples: int = 128,
    seed: int = 0,
    device: str = "auto",
    scoring: Sequence[str] = (),
    *,
    progress: bool = False,
) -> Compared | None:
    """Sample and score rows from the same noise, and draw them.

    Example:
        >>> from evaluations.study.compare import compare
        >>> rows = {"no guidance": ["guidance=[]"], "SAG": ["guidance=[sag]"]}
        >>> small = ["sampler=ddim", "sampler.steps=ddim2", "batch_size=10"]
        >>> compared = compare(rows, "compared", small, num_samples=10, device="cpu", scoring=["metrics=[fid]"])
        >>> [file.name for file in compared.files], [run.row for run in compared.runs]
        (['samples.png', 'masks.png', 'scores.png', 'table.md'], ['no guidance', 'SAG'])

    Args:
        rows: The overrides of configs/sample.yaml by which each row differs.
        out: The folder for the pictures and the table, with a folder for each row.
        common: Overrides of configs/sample.yaml for all rows.
        num_samples: How many samples each row has.
        seed: The seed of all rows.
        device: "cpu", "cuda", "cuda:N", or "auto".
        scoring: Overrides of configs/evaluate.yaml.
        progress: Whether to show progress bars on stderr.

    Returns:
        Runs, table and files, where masks.png shows what the first row with SAG sees; None in all processes but the main one.

    Raises:
        ValueError: If something cannot be sampled or scored, or a file of somebody else is in the way.
        OSError: If a file cannot be read, fetched or written.
        FloatingPointError: If the values of a sample do not stay finite.
    """
    if num_samples < SHOWN:
        raise ValueError(f"num_samples must be at least {SHOWN}, got {num_samples}")
    if not rows:
        raise ValueError("there are no rows to compare")
    check_list("common", common)
    size = [f"num_samples={num_samples}", f"seed={seed}"]
    composed = [compose_row("demo", name, [*common, *overrides, *size], scoring) for name, overrides in rows.items()]
    references = {str(row.cfg.model.get("reference")) for row in composed}
    if len(references) != 1 and not any(override.startswith("reference=") for override in scoring):
        raise ValueError(f"rows compare if their models have one reference; these have {', '.join(sorted(references))}")
    given = {"num_samples": num_samples, "common": [*common], "rows": {row: [*rows[row]] for row in rows}, "seed": seed}
    given |= {"scoring": [*scoring]} if scoring else {}
    with_sag = [row for row in composed if "sag" in row.cfg.guidance]
    files = [name for name in FILES if with_sag or name != "masks.png"]
    place = storage.LocalFolder(Path(out))
    storage.claim_files(place, given, files)
    runs, images = [], {}
    for row in composed:
        logger.info("%s", row.name)
        folder = place.path / row.name.replace(" ", "_").lower()
        run = row.run(folder, device, progress=progress)
        if run is not None:
            runs.append(run)
            images[row.name] = read_samples(next(folder.glob(f"samples_{num_samples}x*.npz")))[0]
    if not runs:
        return None
    (table,) = arrange(runs)
    draw_samples({row: batch[:SHOWN] for row, batch in images.items()}, place.path / "samples.png")
    if with_sag:
        draw_strip(with_sag[0].moments(device), place.path / "masks.png", ["mask", "degraded"])
    draw_table(table, base_of(table, []), place.path / "scores.png")
    place.write("table.md", markdown(table).encode())
    return Compared(runs, table, [place.path / name for name in files])
