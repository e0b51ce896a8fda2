"""The metrics. Each module in this folder is one and is found automatically. `python -m evaluations.metrics` lists them."""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, get_origin

from evaluations.metric import Metric


def _discover() -> tuple[type[Metric[Any]], ...]:
    found: list[type[Metric[Any]]] = []
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")):
        defined = vars(importlib.import_module(f"{__name__}.{module}")).values()
        classes = [
            kind for kind in defined if isinstance(kind, type) and get_origin(kind) is None
        ]  # Python 3.10 has more types
        own = [kind for kind in classes if issubclass(kind, Metric)]
        found += [kind for kind in own if kind.__module__ == f"{__name__}.{module}" and not kind.__abstractmethods__]
    found.sort(key=lambda kind: kind.place)
    _check_names(found)
    return tuple(found)


def _check_names(kinds: Sequence[type[Metric[Any]]]) -> None:
    """Raise a ValueError if two metrics use the same name for different values or settings."""
    values: dict[str, str] = {}
    settings: dict[str, tuple[str, Field[Any]]] = {}
    for kind in kinds:
        for name in (*kind.values, *kind.extras):
            other = values.setdefault(name, kind.__module__)
            if other != kind.__module__:
                raise ValueError(f"{other} and {kind.__module__} both have a value {name!r}; one of them needs another name")
        for field in fields(kind):
            other, known = settings.setdefault(field.name, (kind.__module__, field))
            if (known.type, known.default) != (field.type, field.default):
                raise ValueError(f"{other} and {kind.__module__} have different settings {field.name!r}; rename one of them")


METRICS = _discover()
"""The classes of all metrics, in the order of tables."""
NAMES = tuple(name for kind in METRICS for name in kind.values)
"""Names of all values that can be requested, in the order of tables."""
DEFAULT = tuple(name for kind in METRICS if kind.default for name in kind.values)
"""Names of the values that are measured by default."""
COLUMNS: Mapping[str, str] = {name: title for kind in METRICS if kind.column for name, title in kind.values.items()}
"""Names of the values in tables, with the titles of their columns."""
SETTINGS: Mapping[str, Field[Any]] = {field.name: field for kind in METRICS for field in fields(kind)}
"""The settings of all metrics, as fields with a type and a default."""


def choose(metrics: Sequence[str | Metric[Any]] = DEFAULT, settings: Mapping[str, Any] | None = None) -> dict[str, Metric[Any]]:
    """Choose metrics.

    Args:
        metrics: Names of values, or metrics of your own as objects.
        settings: Settings of the metrics that are chosen by name, if they differ from the defaults.

    Returns:
        The metric of each value, by the name of the value.

    Raises:
        ValueError: If there are no metrics, a name or setting is unknown, or a setting is invalid.
    """
    settings = settings or {}
    unknown = [name for name in settings if name not in SETTINGS]
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r} of the metrics; expected any of {', '.join(SETTINGS)}")
    known: dict[str, Metric[Any]] = {}
    for kind in METRICS:  # all of them, so that an invalid setting is refused even if its metric is not chosen
        metric = kind(**{field.name: settings[field.name] for field in fields(kind) if field.name in settings})
        known |= dict.fromkeys(kind.values, metric)
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise ValueError(f"metrics must be a list of names, got {metrics!r}; expected any of {', '.join(known)}")
    names = [name for name in metrics if not isinstance(name, Metric)]
    wrong = ", ".join(repr(name) for name in names if name not in known)
    if wrong or not metrics:
        reason = f"unknown metric {wrong}" if wrong else "metrics is empty"
        raise ValueError(f"{reason}; expected any of {', '.join(known)}")
    chosen: dict[str, Metric[Any]] = {}
    for item in metrics:
        chosen |= dict.fromkeys(item.values, item) if isinstance(item, Metric) else {item: known[item]}
    return chosen


def size_name(count: int | None) -> str:
    """Return the suffix for N in the name of a value: _50k, _1234, or nothing if N is unknown."""
    if count is None:
        return ""
    return f"_{count // 1000}k" if count % 1000 == 0 and count else f"_{count}"
