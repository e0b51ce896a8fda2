"""Sample and score every row of a table: python scripts/reproduce.py table=main; again to continue."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, DictConfig

from sag.distributed import Stop
from scripts.common import run


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


def main(cfg: DictConfig) -> None:
    """Run what is not among the results yet, and print the table; or print the plan."""
    from evaluations.study.plan import plan  # these import torch, which --help does without
    from evaluations.study.reproduce import reproduce
    from evaluations.study.rows import table_rows
    from evaluations.study.tables import as_text

    rows = table_rows(cfg.table, cfg.rows, cfg.seeds, cfg.num_samples, cfg.common)
    if cfg.dry_run:
        planned, first = plan(rows, cfg.device), rows[0].cfg
        print(planned.table().to_string(index=False, float_format="{:.1f}".format))
        settings = f"{first.precision}{', compiled' if first.compile else ''}, random weights"
        print(
            f"{planned.hours:.1f} hours on one {planned.device}, at {planned.flop_per_second / 1e12:.3f} TFLOP/s measured on "
            f"{first.model.name} ({settings}), without scoring"
        )
        return
    done = reproduce(rows, cfg.results, cfg.out, cfg.device, keep_samples=cfg.keep_samples, stop=Stop(), progress=True)
    if done is None:
        return
    print(as_text(done.tables))
    print(f"wrote {cfg.results}; scripts/report.py makes tables, plots and a page of it")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "reproduce", ReproduceConfig)


if __name__ == "__main__":
    command()
