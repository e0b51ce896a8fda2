"""Sample and score every point of a grid, or what a sweeper proposes: python scripts/sweep.py guidance.sag.scale=0,0.1,0.3,1

A point that is among the results already is not run again; one that fails is recorded with its error, and the rest goes on.
"""

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import MISSING, DictConfig
from typing_extensions import override

from sag.build import SampleConfig
from sag.build.messages import sentence, user_errors
from sag.distributed import Process, Stop
from scripts.common import run

if TYPE_CHECKING:
    from evaluations.study.rows import Row


@dataclass
class SweepConfig(SampleConfig):
    """The keys of configs/sweep.yaml and their types; the values are there."""

    name: str = MISSING
    scoring: list[str] = field(default_factory=list)
    objective: str = MISSING
    results: str = MISSING


def main(cfg: DictConfig) -> float:
    """Sample and score one point; returns its objective, infinity if it failed."""
    from evaluations.study.sweep import score_point  # here, as it imports torch, which --help does without

    try:
        found = score_point(row_of(cfg), cfg.results, cfg.device, stop=Stop(), progress=True)
    except user_errors() as error:
        return failed(cfg, sentence(error))
    if found is None:
        return float("nan")  # not the main process
    if cfg.objective not in found.metrics:
        raise ValueError(f"there is no {cfg.objective!r} to minimise; the scores are {', '.join(found.metrics)}")
    return found.metrics[cfg.objective]


def row_of(cfg: DictConfig) -> "Row":
    """Return the row that a point of the sweep is."""
    from evaluations.study.sweep import point

    return point(cfg.name, cfg, list(HydraConfig.get().overrides.task), cfg.scoring)


def failed(cfg: DictConfig, error: str) -> float:
    """Record that a point failed; returns infinity, its objective."""
    from evaluations.study.sweep import record_failure

    print(f"error: {error}", file=sys.stderr, flush=True)
    if Process.current().main:
        record_failure(row_of(cfg), cfg.results, error)
    return float("inf")


class Summary(Callback):
    """Prints the table when all points are done, and ends with exit code 1 if one of them failed."""

    @override
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.begin = time.time()

    @override
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from evaluations.study.sweep import summarise
        from evaluations.study.tables import as_text

        if not Process.current().main:
            return
        swept = summarise(config.name, config.results, since=self.begin)
        print(as_text(swept.tables))
        print(f"results are in {config.results}; scripts/report.py makes tables, plots and a page of them", flush=True)
        if swept.failed:
            names = "; ".join(found.row for found in swept.failed)
            sys.exit(f"error: {len(swept.failed)} of the points failed ({names}); the same command tries them again")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "sweep", SweepConfig, failed)


if __name__ == "__main__":
    command()
