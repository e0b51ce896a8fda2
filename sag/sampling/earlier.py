"""Samples that earlier runs left: in shards of another batch size, or packed by a run of another length."""

import contextlib
from collections.abc import Collection, Mapping
from types import TracebackType

from sag.data.levels import Images
from sag.data.npz_images import NpzImages
from sag.data.sources import ImageSource
from sag.sampling.shards import read_shard, shard_rows
from sag.storage.folders import Folder


class EarlierSamples:
    """Finds samples of a run in the files of earlier runs with the same settings. Damaged and missing files are ignored.

    It is used in a `with` block.

    Args:
        folder: The folder of the run.
        within: The subfolder of its shards.
        settings: The hash of its settings.
        planned: Names of the shards that this run makes itself. They are not searched.
        packed: Names of packed files that have the first samples of the run, with the number of their samples.
    """

    def __init__(self, folder: Folder, within: str, settings: str, planned: Collection[str], packed: Mapping[str, int]) -> None:
        self._folder, self._within, self._settings = folder, within, settings
        others = {name: shard_rows(name) for name in folder.names(within) - set(planned)}
        self._rows = {name: rows for name, rows in others.items() if rows is not None}
        self._rows |= {name: range(count) for name, count in packed.items()}
        self._packed: dict[str, ImageSource | None] = dict.fromkeys(packed)
        self._copies = contextlib.ExitStack()

    def __enter__(self) -> "EarlierSamples":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._copies.close()

    def read(self, rows: range) -> dict[int, Images]:
        """Return the samples that were found, by row: images (H, W, C), uint8 or uint16."""
        found: dict[int, Images] = {}
        for name, held in list(self._rows.items()):
            wanted = range(max(rows.start, held.start), min(rows.stop, held.stop))
            if wanted and not found.keys() >= set(wanted):
                try:
                    images = self._read(name, range(wanted.start - held.start, wanted.stop - held.start))
                    found |= dict(zip(wanted, images, strict=True))
                except (FileNotFoundError, ValueError):
                    del self._rows[name]
        return found

    def _read(self, name: str, places: range) -> Images:
        if name in self._packed:
            source = self._packed[name] or NpzImages(self._copies.enter_context(self._folder.local(name)))
            if self._packed[name] is None:
                source.verify()
                self._packed[name] = source
            return source.read(places.start, places.stop)
        shard = read_shard(self._folder, f"{self._within}/{name}")
        if shard.settings != self._settings:
            raise ValueError(f"{name} is a shard of another run")
        return shard.images[places.start : places.stop]
