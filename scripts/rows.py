"""A row of a comparison: overrides of configs/sample.yaml, sampled and scored; what is there already is not made again."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import sample
from hydra import compose

COLUMNS = {"fid": "FID", "sfid": "sFID", "is": "IS", "precision": "precision", "recall": "recall", "agreement": "agreement"}
"""The metrics of a comparison, and what their columns are called."""


def run_row(overrides: Sequence[str], out: Path, device: str) -> dict[str, float]:
    """Sample by the overrides into `out`, score against the reference of the model; the metrics of `COLUMNS` that there are.

    overrides: of one key the last counts.

    Raises:
        ValueError: what sampling and scoring raise.
    """
    cfg = compose("sample", list({override.split("=", 1)[0]: override for override in overrides}.values()))
    cfg.out, cfg.device = str(out), device
    sample.main(cfg)
    scores = out / "scores.json"
    cfg = compose("evaluate", [f"metrics=[{','.join(COLUMNS)}]", "batch_size=250"])
    cfg.samples, cfg.out, cfg.device = str(out), str(scores), device
    evaluate.main(cfg)
    found: dict[str, Any] = json.loads(scores.read_bytes())["metrics"]
    plain = {re.sub(r"_\d+k?$", "", name): value for name, value in found.items()}
    return {name: plain[name] for name in COLUMNS if name in plain}
