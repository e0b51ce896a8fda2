"""What in a folder is a run's own: only that may be replaced or removed.

A run that writes several files into a folder keeps a record there, a JSON file with a hash of the run's settings ("settings")
and the names of its files ("files"). The record is written before the files that it names, so that a run that is killed finds
its own files again. Every other file belongs to somebody else.
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
    """Return the names of the files that runs with these settings wrote into `folder`, their record among them.

    Args:
        folder: Where they wrote.
        settings: The hash of the settings.

    Returns:
        The names; nothing if there is no record, or if it is not one of a run with these settings.
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
    """Refuse to write files that would replace somebody else's.

    Args:
        folder: Where the files are to be written.
        names: The files to be written.
        own: Those that may be replaced.

    Raises:
        ValueError: one of the other names is taken.
    """
    for name in sorted(set(names) - set(own)):
        if folder.exists(name):
            raise ValueError(
                f"{folder}/{name} is there already, and no run with these settings wrote it: it is left as it is; "
                "give another out, or move it away"
            )


def claim_files(folder: Folder, settings: Mapping[str, Any], names: Iterable[str]) -> None:
    """Record that a program writes these files now.

    Args:
        folder: Where they are written.
        settings: All that decides what is in them.
        names: The files.

    Raises:
        ValueError: one of them, or the record, is there, and no run with these settings wrote it.
    """
    key, wanted = settings_hash(settings), set(names)
    own = own_files(folder, key)
    refuse_foreign(folder, {RECORD, *wanted}, own)
    facts = {"settings": key, "files": sorted(wanted | own - {RECORD}), "config": settings}
    folder.write(RECORD, to_json(facts))


def add_own_file(folder: Folder, settings: str, name: str) -> None:
    """Add a file to the record that a run with these settings keeps in `folder`; call it before the file is written.

    Args:
        folder: Where the run wrote.
        settings: The hash of its settings.
        name: The file.

    Raises:
        ValueError: it is there, and no run with these settings wrote it.
    """
    own = own_files(folder, settings)
    refuse_foreign(folder, [name], own)
    facts = json.loads(folder.read(RECORD))
    folder.write(RECORD, to_json({**facts, "files": sorted({*facts["files"], name})}))


def remove_own_files(folder: Folder, settings: str, names: Iterable[str]) -> None:
    """Remove files that runs with these settings wrote, and take them out of the record; others are left alone.

    Args:
        folder: Where the runs wrote.
        settings: The hash of their settings.
        names: The files.
    """
    removed = set(names) & own_files(folder, settings) - {RECORD}
    for name in removed:
        folder.remove(name)
    if removed:
        facts = json.loads(folder.read(RECORD))
        folder.write(RECORD, to_json({**facts, "files": sorted(set(facts["files"]) - removed)}))


def to_json(facts: Mapping[str, Any]) -> bytes:
    """Return a JSON object with a line for each key."""
    rows = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
    return ("{\n" + ",\n".join(rows) + "\n}\n").encode()
