"""The keys of configs/evaluate.yaml."""

from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal, get_origin, get_type_hints

from evaluations.metrics import DEFAULT, METRICS, SETTINGS
from sag.build import register
from sag.build.configs import MISSING


@dataclass
class _Keys:
    """The keys of configs/evaluate.yaml that are not settings of metrics, with their types. The file has their values."""

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
    """Return the settings of all metrics as dataclass fields. OmegaConf does not support Literal, so these become str."""
    hints = {name: hint for kind in METRICS for name, hint in get_type_hints(kind.__init__).items()}  # fields only
    types = {name: str if get_origin(hints[name]) is Literal else hints[name] for name in SETTINGS}
    return [(name, types[name], field(default=setting.default)) for name, setting in SETTINGS.items()]


EvaluateConfig = make_dataclass("EvaluateConfig", _settings(), bases=(_Keys,))
"""All keys of configs/evaluate.yaml, including the settings of the metrics."""
register("evaluate", EvaluateConfig)
