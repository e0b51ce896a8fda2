"""The settings that determine a result: their hash, comparison with a folder's, and records of how it was made."""

import subprocess
import sys
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

import sag
from sag.storage import Folder

CONFIG = "config.yaml"
"""The file in the folder of a run that holds its settings."""
LAYOUT = ("num_samples", "batch_size")
"""The settings that determine how many samples there are and how they are made, but not what a sample looks like."""
ROOT = Path(__file__).parent.parent


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML, in their order."""
    return yaml.dump(dict(settings), sort_keys=False, allow_unicode=True, default_flow_style=False)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings."""
    return sha256(to_yaml(settings).encode()).hexdigest()


def read_settings(folder: Folder) -> dict[str, Any]:
    """Return the settings in the config.yaml of a run; empty if no run wrote the file."""
    try:
        settings = yaml.safe_load(folder.read(CONFIG))
    except (ValueError, yaml.YAMLError):
        return {}
    return {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}


def check_folder(folder: Folder, settings: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Check that a folder has no results of other settings.

    Args:
        folder: The folder. Its config.yaml has the settings of its results.
        settings: The settings of this run.
        free: Keys that may differ.

    Raises:
        ValueError: If the settings differ (the message names the keys), or no run wrote the config.yaml.
    """
    if CONFIG not in folder.names():
        return
    there, here = _flat(read_settings(folder)), _flat(settings)
    if not there.keys() & here.keys():
        raise ValueError(f"{folder}/{CONFIG} is there already, and no run wrote it; give another out, or move it away")
    differing = [
        f"{key} ({there.get(key, 'absent')} there, {here.get(key, 'absent')} here)"
        for key in sorted({*there, *here} - set(free))
        if there.get(key) != here.get(key)  # a key that did not exist then counts as null
    ]
    if differing:
        raise ValueError(f"{folder} holds results of other settings; give another out, or remove it: {', '.join(differing)}")


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, Mapping) and node:
        return {key: value for name, child in node.items() for key, value in _flat(child, f"{prefix}{name}.").items()}
    return {prefix[:-1]: node}


def provenance(device: Any) -> dict[str, Any]:
    """Return the versions, the commit and the device of this run, for the record of its results.

    Args:
        device: The torch device of the computation.

    Returns:
        `versions`, `device`, and `commit`, which is None if the library is installed without its repository.
    """
    import numpy as np  # imported here, since reading a record needs neither of them
    import torch

    from sag.devices import device_name

    versions = {
        "sag": sag.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }
    return {"versions": versions, "commit": _commit(), "device": device_name(device)}


def _commit() -> str | None:
    if not (ROOT / ".git").exists():  # otherwise an environment inside another repository would return that one's commit
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
