"""The settings that determine a result: their hash, comparison with a folder's, and records of how it was made."""

import copy
import subprocess
import sys
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

import sag
from sag.storage import Folder, LocalFolder

CONFIG = "config.yaml"
"""The file in the folder of a run that holds its settings."""
LAYOUT = ("num_samples", "batch_size")
"""The settings that determine how many samples there are and how they are made, but not what a sample looks like."""
ROOT = Path(__file__).parent.parent
_SAG = "sag.guidance.SelfAttentionGuidance"
_MOVED = {  # what configs built, by its former name
    "sag.storage.FolderImages": "sag.data.FolderImages",
    "sag.storage.NpzImages": "sag.data.NpzImages",
    "sag.training.data.fashion_mnist": "sag.data.fashion_mnist.fashion_mnist",
}
_FORMER = b"\n  sag:\n    scale:"  # in every config.yaml of a former version, where models had settings of SAG


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML, in their order."""
    return yaml.dump(dict(settings), sort_keys=False, allow_unicode=True, default_flow_style=False)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings."""
    return sha256(to_yaml(settings).encode()).hexdigest()


def shared_key(settings: Mapping[str, Any]) -> str:
    """Return the hash of the settings that runs on one folder share."""
    return fingerprint({key: value for key, value in settings.items() if key not in LAYOUT})


def modern(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in their present form, whatever version of this library recorded them.

    Args:
        settings: The settings of a run, which are not changed.
    """
    found = copy.deepcopy(dict(settings))
    model, guidance, data = (found[key] if isinstance(found.get(key), dict) else {} for key in ("model", "guidance", "data"))
    model.pop("sag", None)  # defaults of the guidance; what was used is recorded there
    for technique in guidance.values():
        if isinstance(technique, dict) and technique.get("_target_") == _SAG and technique.get("heads") is True:
            technique["heads"] = "own"
    if "_target_" in data:
        data["_target_"] = _MOVED.get(str(data["_target_"]), data["_target_"])
    return found


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
    there, here = _facts(read_settings(folder)), _facts(settings)
    if not there.keys() & here.keys():
        raise ValueError(f"{folder}/{CONFIG} is there already, and no run wrote it; give another out, or move it away")
    keys = _differing(there, here, free)
    if keys:
        differing = ", ".join(f"{key} ({there.get(key, 'absent')} there, {here.get(key, 'absent')} here)" for key in keys)
        raise ValueError(f"{folder} holds results of other settings; give another out, or remove it: {differing}")


def as_recorded(folder: Folder, settings: Mapping[str, Any], free: Collection[str] = ()) -> dict[str, Any]:
    """Return settings in the form in which a folder has them, if a former version of this library recorded it.

    The form determines the hashes by which a run knows its own files.

    Args:
        folder: The folder.
        settings: The settings of a run.
        free: Keys that may differ; they keep their values.
    """
    there = read_settings(folder) if folder.exists(CONFIG) else {}
    if modern(there) == there or _differing(_facts(there), _facts(settings), free):
        return dict(settings)
    return {**there, **{key: settings[key] for key in free if key in settings}}


def former_folder(parent: Path, pattern: str, settings: Mapping[str, Any], free: Collection[str] = ()) -> Path | None:
    """Find the folder in which a former version of this library recorded settings; their hash, its name, is another one now.

    Args:
        parent: Where to look.
        pattern: What the names of the folders look like, as in `Path.glob`.
        settings: The settings of a run.
        free: Keys that may differ.
    """
    for path in sorted(parent.glob(f"{pattern}/{CONFIG}")):
        folder = LocalFolder(path.parent)
        if _FORMER in path.read_bytes() and not _differing(_facts(read_settings(folder)), _facts(settings), free):
            return path.parent
    return None


def _differing(there: Mapping[str, Any], here: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """Return the keys that differ; one that did not exist when settings were recorded counts as null."""
    return [key for key in sorted({*there, *here} - set(free)) if there.get(key) != here.get(key)]


def _facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in their present form by their dotted keys."""
    return _flat(modern(settings))


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
