"""Sample and reference batches: images, or their statistics, in the formats of ADM, EDM, clean-fid and pytorch-fid."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluations.frechet import Statistics
from sag.data import ImageSource, NpzImages, SelectedImages, eight_bits, open_images
from sag.sampling.shards import stream_array
from sag.storage import Npz, atomic

STATISTICS = ("mu", "sigma", "mu_s", "sigma_s", "num_images", "extractor")


@dataclass(frozen=True)
class Batch:
    """A batch of images, their statistics, or both.

    Attributes:
        path: The file or folder.
        fingerprint: A hash of the content.
        images: The images.
        pool: Statistics of pool features.
        spatial: Statistics of spatial features.
        extractor: Id of the extractor of the statistics, if the file states it.
    """

    path: Path
    fingerprint: str
    images: ImageSource | None = None
    pool: Statistics | None = None
    spatial: Statistics | None = None
    extractor: str | None = None

    @property
    def count(self) -> int | None:
        """Number of images for FID and sFID; None if the file does not state it."""
        if self.pool is not None:
            return self.pool.count
        return None if self.images is None else len(self.images)

    def describe(self) -> str:
        """Describe the batch in one line."""
        parts = []
        if self.images is not None:
            n, height, width, _ = self.images.shape
            parts.append(f"{n} images of {height}x{width}")
        if self.pool is not None:
            kinds = "pool and spatial" if self.spatial is not None else "pool"
            parts.append(f"statistics of {kinds} features{f' of {self.pool.count} images' if self.pool.count else ''}")
        return f"{self.path} ({', '.join(parts)})"


def open_batch(path: str | Path) -> Batch:
    """Open a batch. Images are not read yet.

    Args:
        path: A folder of PNGs, or an npz with arr_0 (images), mu and sigma (statistics of pool features), mu_s and sigma_s
            (statistics of spatial features), or all of them.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If the file is damaged, is not an npz, has pickled objects, or has neither images nor statistics.
    """
    path = Path(path)
    if path.is_dir():
        folder = open_images(path)
        return Batch(path, folder.fingerprint, folder)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder at {path}")
    npz = Npz(path)
    if not {"arr_0", "mu"} & {*npz.keys}:
        raise ValueError(f"{path} holds {npz.contents()}; expected uint8 images in arr_0, or mu and sigma")
    images = NpzImages(path) if "arr_0" in npz.keys else None
    rest = {key: npz.array(key) for key in STATISTICS if key in npz.keys}
    count = _count(path, rest.get("num_images"))
    extractor = rest.get("extractor")
    if extractor is not None and (extractor.shape != () or extractor.dtype.kind != "U"):
        raise ValueError(f"{path}: extractor is {extractor.dtype} {extractor.shape}; expected one text, an extractor's id")
    digest = sha256(images.fingerprint.encode() if images else b"")
    for key in sorted(rest):
        digest.update(key.encode() + np.ascontiguousarray(rest[key]).tobytes())
    return Batch(
        path,
        digest.hexdigest(),
        images,
        _statistics(path, rest, "mu", "sigma", count),
        _statistics(path, rest, "mu_s", "sigma_s", count),
        None if extractor is None else str(extractor),
    )


def _count(path: Path, stored: NDArray[Any] | None) -> int | None:
    if stored is None:
        return None
    if stored.size != 1 or stored.dtype.kind not in "iuf" or not stored.item() >= 1 or stored.item() % 1:
        raise ValueError(f"{path}: num_images is {stored.dtype} {stored.shape}; expected one whole number, at least 1")
    return int(stored.item())


def _statistics(
    path: Path, arrays: dict[str, NDArray[Any]], mean: str, covariance: str, count: int | None
) -> Statistics | None:
    if mean not in arrays and covariance not in arrays:
        return None
    for key in (mean, covariance):
        if key not in arrays:
            raise ValueError(f"{path} has no {key}; statistics are {mean} and {covariance} together")
    m, c = arrays[mean], arrays[covariance]
    if m.ndim != 1 or not m.size or c.shape != 2 * m.shape or m.dtype.kind != "f" or c.dtype.kind != "f":
        raise ValueError(
            f"{path}: {mean} is {m.dtype} {m.shape} and {covariance} {c.dtype} {c.shape}; expected (D,) and (D, D)"
        )
    if not (np.isfinite(m).all() and np.isfinite(c).all()):
        raise ValueError(f"{path}: {mean} or {covariance} holds values that are not finite")
    return Statistics(m.astype(np.float64), c.astype(np.float64), count, f"{path} ({mean}, {covariance})")


def write_reference(
    path: Path,
    images: ImageSource,
    kept: NDArray[np.int64],
    pool: Statistics,
    spatial: Statistics | None,
    extractor: str,
    *,
    compact: bool = False,
) -> None:
    """Write a reference in ADM's format. The same input gives the same bytes.

    It has arr_0 (the kept images, uint8 (N, H, W, C), grey as RGB), arr_1 (their labels, if there are any), mu, sigma, mu_s,
    sigma_s, num_images and extractor.

    Args:
        path: The npz.
        images: All images.
        kept: Indices of the images to store.
        pool: Statistics of the pool features of all images.
        spatial: Statistics of their spatial features, or None.
        extractor: Id of the extractor.
        compact: Whether to compress the file and keep grey images in one channel. ADM's own evaluator cannot read such files.

    Raises:
        FileExistsError: If the file exists.
    """
    arrays: dict[str, NDArray[Any]] = {"mu": pool.mean, "sigma": pool.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    labels = images.labels()
    if labels is not None:
        arrays["arr_1"] = labels[kept]
    arrays |= {"num_images": np.array(len(images)), "extractor": np.array(extractor)}
    with atomic(path, replace=False) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        channels = 3 if images.shape[3] == 1 and not compact else images.shape[3]
        shape = (len(kept), *images.shape[1:3], channels)
        parts = _parts(SelectedImages(images, kept), channels)
        stream_array(archive, "arr_0", shape, np.dtype(np.uint8), parts, compressed=compact)
        for key, array in arrays.items():
            stream_array(archive, key, array.shape, array.dtype, [array], compressed=compact)


def _parts(images: ImageSource, channels: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), 100):
        part = eight_bits(images.read(start, start + 100))
        yield np.broadcast_to(part, (*part.shape[:3], channels))
