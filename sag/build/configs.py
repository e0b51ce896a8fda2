"""Configs as other packages handle them, so that only this one knows Hydra and OmegaConf."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra.utils import instantiate
from omegaconf import MISSING, OmegaConf
from omegaconf import DictConfig as Config

__all__ = ["MISSING", "Config", "as_dataclass", "instantiate", "merged", "plain", "read", "selected"]
Kind = TypeVar("Kind")


def plain(node: Any) -> Any:
    """Return a config as dicts, lists and numbers, with all references resolved; other values stay as they are."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def merged(cfg: Config, **values: Any) -> Config:
    """Return a copy of a config with other values for some keys."""
    return cast(Config, OmegaConf.merge(cfg, values))


def selected(cfg: Config, keys: Iterable[str]) -> Config:
    """Return a copy of a config with some of its keys only."""
    return OmegaConf.masked_copy(cfg, list(keys))


def as_dataclass(kind: type[Kind], node: Config | Mapping[str, Any]) -> Kind:
    """Return the values of a config as a dataclass.

    Args:
        kind: The dataclass.
        node: The values.

    Raises:
        omegaconf.errors.OmegaConfBaseException: If a key is unknown or missing, or a value has another type.
    """
    return cast(Kind, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), node)))


def read(path: Path) -> Config:
    """Return the content of a config file."""
    return cast(Config, OmegaConf.load(path))
