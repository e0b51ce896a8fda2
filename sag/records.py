"""What a reader of results wants to know of how they came about."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sag
from sag.devices import device_name

ROOT = Path(__file__).parent.parent


def provenance(device: torch.device) -> dict[str, Any]:
    """Return versions, commit and device of this run, for the record beside its results.

    Args:
        device: Where it computes.

    Returns:
        `versions`, `device`, and `commit`, which is None where the library is installed without its repository.
    """
    versions = {
        "sag": sag.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }
    return {"versions": versions, "commit": _commit(), "device": device_name(device)}


def _commit() -> str | None:
    if not (ROOT / ".git").exists():  # an environment inside somebody else's repository would answer with that one's commit
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
