"""Features on disk. Any number of processes write shards of a fixed size, which are read in the order of the images."""

import contextlib
import io
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from evaluations.extractors import Extractor, Features
from sag.claims import Claims
from sag.data import ImageSource, eight_bits
from sag.distributed import Process
from sag.storage import LocalFolder, Npz, atomic

SHARD = 500  # images per file: about 10 MB of Inception features
BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} images, {rate_fmt}, {remaining} left"


class FeatureFiles:
    """The features of images in shards. Iteration yields pairs (index of the first image, arrays by name).

    Args:
        folder: The folder of the shards.
        count: Number of images.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.names = [f"{start:08d}.npz" for start in range(0, count, SHARD)]

    def __iter__(self) -> Iterator[tuple[int, dict[str, NDArray[np.float32]]]]:
        for number, name in enumerate(self.names):
            path = self.folder / name
            try:
                npz = Npz(path)
                features = {key: npz.array(key) for key in npz.keys}
            except ValueError as error:
                raise ValueError(f"{path}, features of an earlier run, is damaged; remove it and run again") from error
            yield number * SHARD, features

    def remove(self) -> None:
        """Remove the shards, including unfinished ones, and the folder and its parent if they are then empty."""
        folder = LocalFolder(self.folder)
        for name in self.names:
            folder.remove(name)
            folder.remove(f"{name}.claim")
        folder.remove_leftovers("", r"\d{8,}\.npz(\.claim)?")
        for path in (self.folder, self.folder.parent):
            with contextlib.suppress(OSError):  # it is not empty: it has files of the user
                path.rmdir()


def folder_name(source: ImageSource, extractor: Extractor) -> str:
    """Return a name for the features of these images and this extractor."""
    return sha256(f"{source.fingerprint} {extractor.id}".encode()).hexdigest()[:16]


def extract(
    source: ImageSource,
    extractor: Extractor,
    folder: Path,
    process: Process,
    batch_size: int,
    title: str,
    progress: bool = True,
) -> FeatureFiles:
    """Compute the features of all images, except in shards that exist already.

    Processes share the shards. The main process returns when all shards are finished; the others may return earlier.

    Args:
        source: The images.
        extractor: The feature network.
        folder: The folder of the shards.
        process: This process.
        batch_size: Number of images that the extractor is given at once.
        title: The text before the progress bar.
        progress: Whether to show a progress bar.

    Returns:
        The features.

    Raises:
        ValueError: If features are not finite, or an image cannot be read.
    """
    files = FeatureFiles(folder, len(source))
    folder.mkdir(parents=True, exist_ok=True)
    if process.main and not all((folder / name).exists() for name in files.names):
        source.verify()
    with tqdm(
        total=len(source), unit="image", desc=f"{title:<9}", bar_format=BAR, disable=not (progress and process.main)
    ) as bar:
        claims = Claims(LocalFolder(folder), "", process)
        for name in claims.take(files.names, finished=lambda: not folder.exists(), wait=process.main):
            start = int(name.split(".")[0])
            stop = min(start + SHARD, len(source))
            parts = []
            for first in range(start, stop, batch_size):
                last = min(first + batch_size, stop)
                found = extractor(torch.from_numpy(eight_bits(source.read(first, last))).permute(0, 3, 1, 2))
                _check_finite(found, first, title)
                parts.append(found)
                claims.beat()
                bar.update(min(claims.done * SHARD + last - start, len(source)) - bar.n)
            try:
                _write(folder / name, parts)
            except FileNotFoundError:
                if process.main:
                    raise
                break  # the other processes have finished and removed the folder
    return files


def _check_finite(found: Features, first: int, title: str) -> None:
    for features in found:
        if features is not None:
            bad = (~features.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
            if bad:
                raise ValueError(f"the extractor gives features that are not finite for image {first + bad[0]} of the {title}")


def _write(path: Path, parts: list[Features]) -> None:
    arrays = {
        name: torch.cat([getattr(part, name) for part in parts]).cpu().numpy()
        for name in Features._fields
        if getattr(parts[0], name) is not None
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with atomic(path) as file:
        file.write(buffer.getbuffer())
