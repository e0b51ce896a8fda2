"""Sample and score every point of a grid, or what a sweeper proposes: python scripts/sweep.py guidance.sag.scale=0,0.1,0.3,1

A point that is among the results already is not run again; one that fails is recorded with its error, and the rest goes on.
"""

import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import MISSING, DictConfig, OmegaConf

from evaluations.study.results import Results, Run
from evaluations.study.tables import arrange, markdown
from sag.build import SampleConfig, out_folder
from sag.build.messages import sentence
from sag.distributed import Process
from scripts.common import run, user_errors
from scripts.rows import Row

PLACES = {"device", "out", "name", "scoring", "objective", "results"}
UNNAMED = PLACES | {"seed", "num_samples", "batch_size", "precision", "compile"}
"""Keys that do not stand in the name of a point."""


@dataclass
class SweepConfig(SampleConfig):
    """The keys of configs/sweep.yaml and their types; the values are there."""

    name: str = MISSING
    scoring: list[str] = field(default_factory=list)
    objective: str = MISSING
    results: str = MISSING


def point(cfg: DictConfig, overrides: list[str]) -> Row:
    """The row that a point of the sweep is, named by its overrides."""
    own = OmegaConf.masked_copy(cfg, [f.name for f in fields(SampleConfig)])
    name = " ".join(override for override in overrides if override.split("=", 1)[0] not in UNNAMED)
    return Row(cfg.name, name or "default", own, cfg.scoring)


def record_failure(cfg: DictConfig, error: str) -> float:
    """Add a point that failed to the results; returns infinity, its objective."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    if Process.current().main:
        row = point(cfg, list(HydraConfig.get().overrides.task))
        settings: Any = OmegaConf.to_container(row.cfg, resolve=True)
        Results(Path(cfg.results)).add(Run(row.key, row.table, row.name, cfg.seed, cfg.num_samples, settings, error=error))
    return float("inf")


def main(cfg: DictConfig) -> float:
    """Sample and score one point; returns its objective, infinity if it failed."""
    row, results = point(cfg, list(HydraConfig.get().overrides.task)), Results(Path(cfg.results))
    main_process = Process.current().main
    known = {found.key: found for found in results.runs() if found.error is None and found.table == row.table}
    found = known.get(row.key)
    if found is None:
        if main_process:
            print(f"\n{row.table}: {row.name}", flush=True)
        try:
            found = row.run(Path(out_folder(row.cfg)), cfg.device)
        except user_errors() as error:
            return record_failure(cfg, sentence(error))
        if found is not None:
            results.add(found)
    if found is None:
        return float("nan")  # not the main process
    if cfg.objective not in found.metrics:
        raise ValueError(f"there is no {cfg.objective!r} to minimise; the scores are {', '.join(found.metrics)}")
    return found.metrics[cfg.objective]


class Summary(Callback):
    """Prints the table when all points are done, and ends with exit code 1 if one of them failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See `Callback`."""
        self.begin = time.time()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """See `Callback`."""
        if not Process.current().main:
            return
        own = [found for found in Results(Path(config.results)).runs() if found.table == config.name]
        for table in arrange(own):
            print(f"\n{table.title}\n\n{markdown(table)}")
        failed = [found for found in own if found.error is not None and found.time >= self.begin]
        print(f"results are in {config.results}; scripts/report.py makes tables, plots and a page of them", flush=True)
        if failed:
            names = "; ".join(found.row for found in failed)
            sys.exit(f"error: {len(failed)} of the points failed ({names}); the same command tries them again")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "sweep", SweepConfig, record_failure)


if __name__ == "__main__":
    command()
