"""The file that holds a result of a benchmark."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sag.devices import device_name
from sag.storage import Folder, refuse_foreign


@dataclass(frozen=True)
class ResultFile:
    """A file that is replaced only if it holds an earlier result with the same settings.

    Args:
        folder: The folder of the file.
        name: Its name.
        settings: A hash of the settings of the benchmark.
    """

    folder: Folder
    name: str
    settings: str

    def check(self) -> None:
        """Check that the file may be written.

        Raises:
            ValueError: If it holds something else.
        """
        try:
            own = [self.name] if json.loads(self.folder.read(self.name))["settings"] == self.settings else []
        except (OSError, ValueError, LookupError, TypeError):
            own = []
        refuse_foreign(self.folder, [self.name], own)

    def write(self, result: Mapping[str, Any], device: torch.device) -> None:
        """Write a result with what it was measured on.

        Args:
            result: The result, as JSON can hold it.
            device: The device.

        Raises:
            ValueError: If the file holds something else.
        """
        self.check()
        facts = {**result, **machine(device), "settings": self.settings}
        self.folder.write(self.name, json.dumps(facts, indent=1).encode())


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a result depends on besides the settings: the device, the number of threads and the version of torch."""
    return {"device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
