"""The config groups: which there are, what each offers, and one config of a group by itself."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

CONFIGS = Path(__file__).parents[2] / "configs"  # beside the packages, in a checkout and where they are installed
EXPERIMENT = "experiment"
"""The group of the rows of published tables, which `sag.build.tables` fills."""


def is_group(name: str) -> bool:
    """Return whether a key of the command line chooses a config of a group."""
    return name == EXPERIMENT or (name != "" and (CONFIGS / name).is_dir())


def choices(group: str) -> list[str]:
    """Return the names of the configs of a group."""
    with open_configs():
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def load_config(group: str, name: str) -> DictConfig | None:
    """Return a config of a group with all that it inherits, or None if there is none of this name."""
    with open_configs():
        loader = GlobalHydra.instance().config_loader()
        if name not in loader.get_group_options(group):
            return None
        found: DictConfig = loader.load_configuration(f"{group}/{name}", [], RunMode.RUN)[group]
        return found


def open_configs() -> AbstractContextManager[Any]:
    """Return a context in which Hydra finds configs/; within a program, also the folder of its --config-dir."""
    hydra = GlobalHydra.instance()
    if hydra.is_initialized():
        places = [element.path or "" for element in hydra.config_loader().get_search_path().get_path()]
        if any(place.removeprefix("file://") == str(CONFIGS) for place in places):
            return nullcontext()
    return initialize_config_dir(str(CONFIGS), version_base="1.3")
