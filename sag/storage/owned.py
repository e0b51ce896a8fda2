"""Records of the files that belong to a run. A run may replace or remove only its own files.

A run that writes several files into a folder keeps a record there: a JSON file with a hash of the run's settings ("settings")
and the names of its files ("files"). The record is written before these files, so that a killed run recognises them later.
All other files belong to the user.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from sag.storage.folders import Folder

RECORD = "record.json"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings that JSON can hold."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def own_files(folder: Folder, settings: str) -> set[str]:
    """Return the names of the files that runs with these settings wrote, including their record.

    Args:
        folder: The folder of the runs.
        settings: The hash of their settings.

    Returns:
        The names; empty if there is no record of a run with these settings.
    """
    try:
        facts = json.loads(folder.read(RECORD))
        own = set(facts["files"])
        if facts["settings"] != settings:
            return set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {RECORD, *own}


def refuse_foreign(folder: Folder, names: Iterable[str], own: Iterable[str]) -> None:
    """Check that new files do not replace files of the user.

    Args:
        folder: The folder of the new files.
        names: Names of the new files.
        own: Names of files that may be replaced.

    Raises:
        ValueError: If one of the other files exists.
    """
    for name in sorted(set(names) - set(own)):
        if folder.exists(name):
            raise ValueError(
                f"{folder}/{name} is there already, and no run with these settings wrote it: it is not replaced; "
                "give another out, or move it away"
            )


def claim_files(folder: Folder, settings: Mapping[str, Any], names: Iterable[str]) -> None:
    """Record that a program is going to write these files.

    Args:
        folder: The folder of the files.
        settings: The settings that determine their content.
        names: Names of the files.

    Raises:
        ValueError: If one of the files or the record exists, and no run with these settings wrote it.
    """
    key, wanted = settings_hash(settings), set(names)
    own = own_files(folder, key)
    refuse_foreign(folder, {RECORD, *wanted}, own)
    facts = {"settings": key, "files": sorted(wanted | own - {RECORD}), "config": settings}
    folder.write(RECORD, to_json(facts))


def add_own_file(folder: Folder, settings: str, name: str) -> None:
    """Add a file to the record of a run. Call this before the file is written.

    Args:
        folder: The folder of the run.
        settings: The hash of its settings.
        name: Name of the file.

    Raises:
        ValueError: If the file exists, and no run with these settings wrote it.
    """
    own = own_files(folder, settings)
    refuse_foreign(folder, [name], own)
    facts = json.loads(folder.read(RECORD))
    folder.write(RECORD, to_json({**facts, "files": sorted({*facts["files"], name})}))


def remove_own_files(folder: Folder, settings: str, names: Iterable[str]) -> None:
    """Remove files of runs with these settings, and delete them from the record. Other files are kept.

    Args:
        folder: The folder of the runs.
        settings: The hash of their settings.
        names: Names of the files.
    """
    removed = set(names) & own_files(folder, settings) - {RECORD}
    for name in removed:
        folder.remove(name)
    if removed:
        facts = json.loads(folder.read(RECORD))
        folder.write(RECORD, to_json({**facts, "files": sorted(set(facts["files"]) - removed)}))


def to_json(facts: Mapping[str, Any]) -> bytes:
    """Return a JSON object with one line per key."""
    rows = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
    return ("{\n" + ",\n".join(rows) + "\n}\n").encode()
