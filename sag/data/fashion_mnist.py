"""Fashion-MNIST, the dataset of the small example models."""

import gzip
import os
import shutil
import urllib.error
from hashlib import sha256
from pathlib import Path

import numpy as np
from torchvision.datasets import FashionMNIST

from sag.data import ArrayImages
from sag.storage import atomic, cache_folder, remembered_digests, writing_cache

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the folder of Debian's package dataset-fashion-mnist
FILES = [f"{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")]


def fashion_mnist(split: str = "train", folder: str | None = None, size: int = 32) -> ArrayImages:
    """Load Fashion-MNIST (Xiao et al., arXiv:1708.07747; MIT licence).

    Args:
        split: "train" for 60,000 images, or "test" for 10,000.
        folder: A folder with the four idx files, plain or gzipped. By default, the files of Debian's package
            dataset-fashion-mnist are used, or they are downloaded into the cache.
        size: Height and width in pixels. The 28 x 28 images are placed in the middle of a black square.

    Returns:
        uint8 images (N, size, size, 1) with labels 0 to 9.

    Raises:
        ValueError: If the split is unknown, or the size is below 28.
        FileNotFoundError: If a file is missing in the folder.
        OSError: If the download fails, or the cache cannot be written.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    if size < 28:
        raise ValueError(f"size must be at least 28, got {size}")
    root = cache_folder() / "datasets"
    source = Path(folder) if folder is not None else DEBIAN
    if source.is_dir():
        root = _unpack(source, root)
    elif folder is not None:
        raise FileNotFoundError(f"no folder {folder}; it should hold {FILES[0]} and the three other files of Fashion-MNIST")
    try:
        with writing_cache(root):
            data = FashionMNIST(root, train=split == "train", download=True)
    except (RuntimeError, urllib.error.URLError) as error:
        raise OSError(
            f"could not download Fashion-MNIST ({' '.join(str(error).split())[:200]}); install Debian's package "
            "dataset-fashion-mnist, or give the folder of its files as data.folder=..."
        ) from error
    before = (size - 28) // 2
    margins = (before, size - 28 - before)
    return ArrayImages(np.pad(data.data.numpy(), ((0, 0), margins, margins))[..., None], data.targets.numpy())


def _unpack(source: Path, cache: Path) -> Path:
    """Unpack the files to where torchvision's reader looks for them, and return the root folder, a new one per source."""
    found = {}
    for name in FILES:
        packed, plain = source / f"{name}.gz", source / name
        if not packed.exists() and not plain.exists():
            raise FileNotFoundError(f"{source} has no {name} or {name}.gz, a file of Fashion-MNIST")
        found[name] = packed if packed.exists() else plain
    contents = remembered_digests(list(found.values()))
    root = cache / sha256(repr(contents).encode()).hexdigest()[:12]
    target = root / "FashionMNIST" / "raw"
    missing = [name for name in found if not os.path.exists(target / name)]
    if missing:
        with writing_cache(target):
            for name in missing:
                path = found[name]
                with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file, atomic(target / name) as out:
                    shutil.copyfileobj(file, out)
    return root
