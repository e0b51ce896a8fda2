"""The keys of configs/evaluate.yaml."""

from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal, get_origin, get_type_hints

from omegaconf import MISSING

from evaluations.metrics import DEFAULT, METRICS, SETTINGS
from sag.build import register


@dataclass
class _Keys:
    """The keys of configs/evaluate.yaml that are no settings of metrics, and their types; the values are there."""

    extractor: Any = None
    published: Any = None
    samples: str | None = None
    reference: str | None = None
    metrics: list[str] = field(default_factory=lambda: list(DEFAULT))
    batch_size: int = MISSING
    device: str = MISSING
    out: str | None = None
    self_check: bool = MISSING


def _settings() -> list[Any]:
    """The settings of all metrics as fields that OmegaConf can read, which knows no Literal."""
    hints = {name: hint for kind in METRICS for name, hint in get_type_hints(kind).items()}
    types = {name: str if get_origin(hints[name]) is Literal else hints[name] for name in SETTINGS}
    return [(name, types[name], field(default=setting.default)) for name, setting in SETTINGS.items()]


EvaluateConfig = make_dataclass("EvaluateConfig", _settings(), bases=(_Keys,))
"""All keys of configs/evaluate.yaml; the metrics bring their settings with them."""
register("evaluate", EvaluateConfig)
