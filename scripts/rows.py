"""A row of a table: overrides of configs/sample.yaml, sampled and scored; what is there already is not made again."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import evaluations.evaluate_config  # noqa: F401  makes configs/evaluate.yaml known
import sag
from evaluations.metrics import COLUMNS
from evaluations.study.results import Run
from sag.build import compose
from sag.distributed import Process, Stop
from sag.records import fingerprint
from scripts import evaluate


@dataclass(frozen=True)
class Row:
    """What is sampled (`cfg`, of configs/sample.yaml) and how it is scored (`scoring`, overrides of configs/evaluate.yaml)."""

    table: str
    name: str
    cfg: DictConfig
    scoring: Sequence[str]

    @property
    def key(self) -> str:
        """A hash of everything that decides the scores."""
        return sha256("\n".join([fingerprint(sag.build.identity(self.cfg)), *sorted(self.scoring)]).encode()).hexdigest()

    def run(self, out: Path, device: str) -> Run | None:
        """Sample into `out` and score there; None in a process that is not the main one, whose share is then done.

        Raises:
            ValueError: what sampling and scoring raise.
        """
        self.cfg.out, self.cfg.device = str(out), device
        job = sag.build.job(self.cfg)
        sampled = sag.sampling.run(job, out, stop=Stop())
        scores = out / f"scores-{self.key[:8]}.json"
        scoring = _last([f"metrics=[{','.join(COLUMNS)}]", "batch_size=250", *self.scoring])
        cfg = compose("evaluate", scoring)
        cfg.samples, cfg.out, cfg.device = sampled.path, str(scores), device
        evaluate.main(cfg)
        if not Process.current().main:
            return None
        found: dict[str, Any] = json.loads(scores.read_bytes())
        made, indices = sampled.record, list(job.indices)
        published: Any = OmegaConf.to_container(self.cfg.published) if self.cfg.published is not None else {}
        return Run(
            key=self.key,
            table=self.table,
            row=self.name,
            seed=self.cfg.seed,
            num_samples=len(indices),
            settings=sag.build.identity(self.cfg),
            scoring=found["identity"],
            metrics={re.sub(r"_\d+k?$", "", name): value for name, value in found["metrics"].items()},
            published=published,
            record={key: made[key] for key in ("versions", "commit", "device", "hosts")},
            seconds=made["seconds"] if made["indices"] == indices else None,  # else the record is of another length
            folder=str(out),
        )


def compose_row(table: str, name: str, overrides: Sequence[str], scoring: Sequence[str] = ()) -> Row:
    """A row from overrides of configs/sample.yaml, of which of one key the last counts.

    Raises:
        ValueError: overrides that do not fit.
    """
    return Row(table, name, compose("sample", _last(overrides)), scoring)


def _last(overrides: Sequence[str]) -> list[str]:
    return list({override.split("=", 1)[0]: override for override in overrides}.values())
