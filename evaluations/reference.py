"""Reference batches of any images: the function behind scripts/make_reference.py."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluations.batches import write_reference
from evaluations.extraction import extract, folder_name
from evaluations.extractors import Extractor
from evaluations.frechet import Moments
from evaluations.metric import check_count
from sag.data import ImageSource, SelectedImages
from sag.devices import pick_device
from sag.distributed import Process
from sag.noise import check_word
from sag.storage import check_new


@dataclass(frozen=True)
class Reference:
    """A reference batch that was made.

    Attributes:
        path: The file.
        count: How many images the statistics are about.
        kept: How many of the images are in the file.
        extractor: The id of the feature network.
        notes: What a reader of scores must know of this network.
    """

    path: Path
    count: int
    kept: int
    extractor: str
    notes: tuple[str, ...]


def make_reference(
    data: ImageSource,
    extractor: Extractor,
    out: str | Path,
    *,
    num_images: int = 10_000,
    limit: int | None = None,
    seed: int = 0,
    compact: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    process: Process | None = None,
    progress: bool = False,
) -> Reference | None:
    """Write the statistics of all images, and some of the images, as an npz that `score_files` takes as reference.

    Example:
        >>> from evaluations.fashion import REFERENCE, FashionFeatures
        >>> from evaluations.reference import make_reference
        >>> from sag.data import open_images
        >>> made = make_reference(open_images(REFERENCE), FashionFeatures(), "new.npz", limit=300, num_images=100, device="cpu")
        >>> made.count, made.kept
        (300, 100)

    Args:
        data: The images.
        extractor: The feature network.
        out: The npz.
        num_images: How many images the file has, for metrics that compare images; drawn at random.
        limit: Use only so many of the images, drawn at random; None uses all.
        seed: What the draws depend on.
        compact: See `write_reference`.
        batch_size: How many images the extractor is given at once.
        device: "cpu", "cuda", "cuda:N", or "auto".
        process: This process among those that share the work; None is as the launcher says.
        progress: Whether to show a progress bar on stderr.

    Returns:
        What was written; None in all processes but the main one.

    Raises:
        ValueError: If `out` does not end in .npz or exists, an argument is out of range, there are fewer images than `limit`,
            or an image cannot be used.
        OSError: If a file cannot be read or written.
    """
    path, process = Path(out), process or Process.current()
    check_new(path, ".npz")
    for name, count in {"batch_size": batch_size, "num_images": num_images, "limit": limit}.items():
        if count is not None:
            check_count(name, count)
    where = pick_device(device)
    if limit is not None:
        if limit > len(data):
            raise ValueError(f"limit={limit} images are asked for, but the data has {len(data)}")
        data = SelectedImages(data, draw(limit, len(data), seed))
    kept = draw(min(num_images, len(data)), len(data), seed)
    network = extractor.to(where)
    folder = path.with_name(f".{path.stem}.features") / folder_name(data, network)
    files = extract(data, network, folder, process, batch_size, "data", progress)
    if not process.main:
        return None
    pool, spatial = Moments(), Moments()
    for _, arrays in files:
        pool.update(arrays["pool"])
        if "spatial" in arrays:
            spatial.update(arrays["spatial"])
    of_spatial = spatial.statistics() if spatial.count else None
    write_reference(path, data, kept, pool.statistics(), of_spatial, network.id, compact=compact)
    files.remove()
    return Reference(path, len(data), len(kept), network.id, network.notes)


def draw(count: int, available: int, seed: int) -> NDArray[np.int64]:
    """Draw `count` of the numbers in [0, available) without replacement, and return them in ascending order.

    Raises:
        ValueError: If the seed is out of range.
    """
    check_word("seed", seed)
    return np.sort(np.random.default_rng(seed).choice(available, count, replace=False))
