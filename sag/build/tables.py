"""Rows of the tables in configs/table/, and the experiments, which are the rows of the papers' tables.

A row is a list of overrides of configs/sample.yaml, or a mapping that has them as `settings` beside the published numbers. Such
a row may have a `source` of its own, and `secondhand: true` if its numbers were not read there.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from sag.build.groups import CONFIGS, EXPERIMENT, is_group


def row_settings(table: Mapping[str, Any], row: str) -> list[str]:
    """Return the overrides of a row, without those that the table has for all rows.

    Args:
        table: A config of the group table.
        row: The name of the row.
    """
    facts = table["rows"][row]
    return list(facts["settings"] if isinstance(facts, Mapping) else facts)


def published_numbers(table: Mapping[str, Any], row: str) -> dict[str, Any] | None:
    """Return what a paper says of a row: source, num_samples, extractor and values; None if it says nothing.

    Args:
        table: A config of the group table.
        row: The name of the row.
    """
    facts = table["rows"][row]
    if not isinstance(facts, Mapping):
        return None
    own = {key: facts[key] for key in ("source", "secondhand") if key in facts}
    values = {key: value for key, value in facts.items() if key not in ("settings", *own)}
    return {**table["published"], **own, "values": values} if values else None


@cache
def experiments() -> dict[str, Mapping[str, Any]]:
    """Return the table of each experiment by the name of its row."""
    found = {}
    for path in sorted((CONFIGS / "table").glob("*.yaml")):
        table = yaml.safe_load(path.read_bytes())
        for row in table["rows"] if "published" in table else ():
            if f"{EXPERIMENT}={row}" not in row_settings(table, row):  # else it is that of another table
                found[row] = table
    return found


def store_experiments(names: Iterable[str]) -> None:
    """Make experiments known to Hydra as configs of their group.

    Args:
        names: Which ones, as Hydra copies all that it knows each time it looks for a config. Other names are left out.
    """
    parser = OverridesParser.create()
    for name in set(names) & experiments().keys():
        table = experiments()[name]
        node = _experiment([*table.get("common", []), *row_settings(table, name)], parser)
        node["num_samples"] = table["published"]["num_samples"]
        node["published"] = published_numbers(table, name)
        ConfigStore.instance().store(name, node, EXPERIMENT, "_global_")


def _experiment(overrides: list[str], parser: OverridesParser) -> dict[str, Any]:
    """Return a config that does what overrides do, and that overrides of the command line can change."""
    config: dict[str, Any] = {"defaults": []}
    for override in parser.parse_overrides(overrides):
        key = override.key_or_group
        if is_group(key):
            config["defaults"].append({f"override /{key}": override.value()})
            continue
        *parents, last = key.split(".")
        node = config
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = override.value()
    return config
