"""Sample and score every row of a table: python scripts/reproduce.py table=main; again to continue."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

from evaluations.study.results import Results
from evaluations.study.tables import arrange, markdown
from sag import storage
from sag.build.composing import shared_key
from sag.distributed import Process
from scripts.common import run
from scripts.plan import plan
from scripts.rows import Row, compose_row
from scripts.visualize import draw_masks

MASKS = "masks.png"  # what SAG saw of a row's first samples


@dataclass
class ReproduceConfig:
    """The keys of configs/reproduce.yaml and their types; the values are there."""

    table: Any = MISSING
    rows: list[str] | None = None
    seeds: list[int] = MISSING
    num_samples: int | None = None
    common: list[str] = MISSING
    device: str = MISSING
    dry_run: bool = MISSING
    keep_samples: bool = MISSING
    out: str = MISSING
    results: str = MISSING


def chosen(cfg: DictConfig) -> Iterator[Row]:
    """The rows asked for, all of the first seed before any of the second.

    Raises:
        ValueError: an unknown row.
    """
    names = list(cfg.table.rows) if cfg.rows is None else list(cfg.rows)
    unknown = [name for name in names if name not in cfg.table.rows]
    if unknown:
        raise ValueError(f"table {cfg.table.name} has no row {unknown[0]!r}; it has {', '.join(cfg.table.rows)}")
    for seed in cfg.seeds:
        for name in names:
            own = [f"seed={seed}", *([] if cfg.num_samples is None else [f"num_samples={cfg.num_samples}"])]
            yield compose_row(cfg.table.name, name, [*cfg.common, *cfg.table.rows[name], *own], cfg.table.scoring)


def main(cfg: DictConfig) -> None:
    """Run what is not among the results yet, and print the table."""
    rows = list(chosen(cfg))
    if cfg.dry_run:
        print(plan(rows, cfg.device))
        return
    results, main_process = Results(Path(cfg.results)), Process.current().main
    for row in rows:
        known = {(found.key, found.table, found.row): found for found in results.runs() if found.error is None}
        if (row.key, row.table, row.name) in known:
            continue
        same = next((found for found in known.values() if found.key == row.key), None)
        if same is not None:  # the same settings stand in another table
            if main_process:
                results.add(replace(same, table=row.table, row=row.name))
            continue
        if main_process:
            print(f"\n{row.table}: {row.name}, seed {row.cfg.seed}", flush=True)
        folder, key = storage.LocalFolder(Path(cfg.out) / row.key[:12]), shared_key(row.cfg)
        storage.refuse_foreign(folder, [MASKS], storage.own_files(folder, key))
        found = row.run(folder.path, cfg.device)
        if found is not None:
            if "sag" in row.cfg.guidance:
                storage.add_own_file(folder, key, MASKS)
                draw_masks(row.cfg, cfg.device, folder.path / MASKS)  # for the report
            results.add(found)
            if not cfg.keep_samples:
                storage.remove_own_files(folder, key, (name for name in folder.names() if name.startswith("samples_")))
    if main_process:
        asked = {(row.key, row.table, row.name) for row in rows}
        for table in arrange(f for f in results.runs() if (f.key, f.table, f.row) in asked):
            print(f"\n{table.title}\n\n{markdown(table)}")
        print(f"wrote {cfg.results}; scripts/report.py makes tables, plots and a page of it")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "reproduce", ReproduceConfig)


if __name__ == "__main__":
    command()
