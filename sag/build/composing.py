"""Configs: a name and overrides in, a checked config out."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sag.build.arguments import quote, read_overrides
from sag.build.checks import check_settings, check_targets, missing_keys
from sag.build.groups import choices, open_configs
from sag.build.messages import check_choices, explain, missing, unknown_choice, unknown_keys
from sag.build.own_model import settle
from sag.build.sample_config import SampleConfig
from sag.data.prompts import digest_of, read_prompts
from sag.records import LAYOUT, former_folder, shared_key
from sag.storage import without_digest

logger = logging.getLogger(__name__)
UNSETTLING = ("out", "device", "duplicates", "published", "path", "negative_prompt")
"""Keys that determine nothing about the samples, or are short for a key of the model."""
LATER = {"prompt": None, "prompts": None, "images_per_prompt": 1}
"""Keys that former versions did not have, at values that change nothing; without them, hashes of settings stay the same."""
LATER_OF_GUIDANCE = {"channels": "all"}
"""Such keys of techniques."""
_SCHEMAS: dict[str, type] = {}


def register(config_name: str, schema: type) -> None:
    """Make a dataclass of the keys of a config known, so that `compose` and Hydra check them.

    Args:
        config_name: The config, a file in configs/.
        schema: The dataclass.
    """
    _SCHEMAS[config_name] = schema
    ConfigStore.instance().store(f"{config_name}_schema", schema)


def schema_of(config_name: str) -> type:
    """Return the dataclass of a config's keys.

    Raises:
        ValueError: If no such config is known.
    """
    if config_name not in _SCHEMAS:
        raise ValueError(f"there is no config {config_name!r} to compose; known are {', '.join(sorted(_SCHEMAS))}")
    return _SCHEMAS[config_name]


def compose(config_name: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Compose a config as the program of the same name does.

    Example:
        >>> import sag
        >>> cfg = sag.compose("sample", ["model=fashion32", "guidance=[sag]", "num_samples=16"])
        >>> cfg.num_samples, cfg.sampler.steps
        (16, 50)

    Args:
        config_name: "sample", or another config in configs/ that is registered.
        overrides: As on the command line of the program: "key=value".
        config_dir: A folder with configs of your own, laid out as configs/.

    Returns:
        The config, checked.

    Raises:
        ValueError: If an override cannot be read, does not fit, or something is missing.
    """
    schema = schema_of(config_name)
    readable = read_overrides(overrides, schema)
    with open_configs():
        check_choices(readable)
        places = [] if config_dir is None else [f"hydra.searchpath=[{quote(f'file://{Path(config_dir).absolute()}')}]"]
        try:
            cfg = hydra_compose(config_name, [*places, *readable], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(explain(error, config_name, schema, readable)) from error
        of_hydra = cfg.hydra
        with open_dict(cfg):
            del cfg["hydra"]
        check_keys(cfg, config_name, of_hydra)
        settle_config(cfg, config_name, of_hydra)
    return cfg


def check_keys(cfg: DictConfig, config_name: str, of_hydra: Any) -> None:
    """Check which keys a composed config has.

    Args:
        cfg: The config.
        config_name: Its name.
        of_hydra: What Hydra knows of the composition.

    Raises:
        ValueError: If the program does not know a key, a key was removed, or there is no such classifier.
    """
    overrides: Any = OmegaConf.to_container(of_hydra.overrides.task, resolve=False)
    known = [field.name for field in dataclasses.fields(schema_of(config_name))]
    unknown = [str(key) for key in cfg if key not in known]
    if unknown:
        raise ValueError(unknown_keys(unknown, config_name, overrides))
    removed = [key for key in known if key not in list(cfg)]
    if removed:
        raise ValueError(f"~{removed[0]} removes a key that the program needs")
    if cfg.get("classifier") is None and any(override.startswith("classifier=") for override in overrides):
        raise ValueError(unknown_choice("classifier", of_hydra.runtime.choices["classifier"], choices("classifier")))


def settle_config(cfg: DictConfig, config_name: str, of_hydra: Any) -> None:
    """Check the values of a composed config and settle its model; what a user should know of the model is logged.

    Args:
        cfg: The config, which is changed.
        config_name: Its name.
        of_hydra: What Hydra knows of the composition.

    Raises:
        ValueError: If a value does not fit or is missing.
    """
    overrides: Any = OmegaConf.to_container(of_hydra.overrides.task, resolve=False)
    names = of_hydra.runtime.choices
    check_settings(cfg)
    if OmegaConf.is_dict(cfg.get("model")) and OmegaConf.is_missing(cfg.model, "flags"):  # other keys refer to what they give
        raise ValueError(missing("model.flags", config_name, names))
    notes = settle(cfg, names, overrides)
    without = missing_keys(cfg) or sorted(OmegaConf.missing_keys(cfg))  # the second raises if a reference leads nowhere
    if without:
        raise ValueError(missing(without[0], config_name, names))
    check_targets(cfg)
    for note in notes:
        logger.info("%s", note)


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that determine the samples: all but where a run works, what it refuses, and published numbers.

    Args:
        cfg: Composed from configs/sample.yaml.

    Raises:
        ValueError: If the file of prompts cannot be read.
        OSError: If there is no such file.
    """
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    if settings.get("prompts") is not None:  # what the file says counts, not where it is
        settings["prompts"] = {"file": Path(cfg.prompts).name, "sha256": digest_of(read_prompts(cfg.prompts))}
    kept = _without(settings, LATER)
    kept["guidance"] = {name: _without(technique, LATER_OF_GUIDANCE) for name, technique in settings["guidance"].items()}
    return {key: _without_digests(value) for key, value in kept.items() if key not in UNSETTLING}


def _without(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that have these values."""
    return {key: value for key, value in settings.items() if key not in values or value != values[key]}


def _without_digests(value: Any) -> Any:
    """Return settings without the hashes in addresses, which check a download and say nothing about the samples."""
    if isinstance(value, dict):
        return {key: _without_digests(child) for key, child in value.items()}
    return without_digest(value) if isinstance(value, str) else value


def out_folder(cfg: DictConfig) -> str:
    """Return `out`, or the name of a folder under outputs/ that follows from the settings.

    Args:
        cfg: Composed from configs/sample.yaml.
    """
    if cfg.out:
        return str(cfg.out)
    settings, name = identity(cfg), f"{cfg.model.name}-{'+'.join(cfg.guidance) or 'none'}"
    folder = Path(f"outputs/{name}-{shared_key(settings)[:8]}")
    former = None if folder.exists() else former_folder(folder.parent, f"{name}-*", settings, LAYOUT)
    return str(former or folder)


register("sample", SampleConfig)
