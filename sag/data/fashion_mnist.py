"""Fashion-MNIST, the dataset of the small example models."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sag.data.sources import ArrayImages
from sag.storage import cache_folder, fetch

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the folder of Debian's package dataset-fashion-mnist
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MD5 = {  # as published with the dataset
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
SIDE = 28


def fashion_mnist(split: str = "train", folder: str | None = None, size: int = 32) -> ArrayImages:
    """Load Fashion-MNIST (Xiao et al., arXiv:1708.07747; MIT licence).

    Args:
        split: "train" for 60,000 images, or "test" for 10,000.
        folder: A folder with the idx files, plain or gzipped. By default, the files of Debian's package
            dataset-fashion-mnist are used, or they are downloaded into the cache.
        size: Height and width in pixels. The 28 x 28 images are placed in the middle of a black square.

    Returns:
        uint8 images (N, size, size, 1) with labels 0 to 9.

    Raises:
        ValueError: If the split is unknown, the size is below 28, or a file is damaged or another one.
        FileNotFoundError: If a file is missing in the folder.
        OSError: If the download fails, or the cache cannot be written.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    if size < SIDE:
        raise ValueError(f"size must be at least {SIDE}, got {size}")
    part = "train" if split == "train" else "t10k"
    images = _read(_find(f"{part}-images-idx3-ubyte", folder), 3)  # (N, 28, 28)
    labels = _read(_find(f"{part}-labels-idx1-ubyte", folder), 1)
    before = (size - SIDE) // 2
    margins = (before, size - SIDE - before)
    return ArrayImages(np.pad(images, ((0, 0), margins, margins))[..., None], labels)


def _find(name: str, folder: str | None) -> Path:
    """Return a file of the folder, or else of Debian's package, or else a downloaded one."""
    source = Path(folder) if folder is not None else DEBIAN
    if source.is_dir():
        for path in (source / f"{name}.gz", source / name):
            if path.exists():
                return path
        raise FileNotFoundError(f"{source} has no {name} or {name}.gz, a file of Fashion-MNIST")
    if folder is not None:
        raise FileNotFoundError(f"no folder {folder}; it should hold {name}, a file of Fashion-MNIST")
    target = cache_folder() / "datasets/FashionMNIST/raw" / f"{name}.gz"
    advice = ", install Debian's package dataset-fashion-mnist, or give the folder of its files as data.folder=..."
    return fetch(f"{MIRROR}/{name}.gz#md5={MD5[name]}", target, advice=advice)


def _read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes: 0, 0, 8, the number of dimensions, each of them in 4 bytes, and the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}, a file of Fashion-MNIST, is damaged ({error})") from error
    begin = 4 + 4 * dimensions
    if content[:4] == bytes([0, 0, 8, dimensions]) and len(content) >= begin:
        shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
        if len(content) - begin == np.prod(shape, dtype=int) and shape[1:] in ((), (SIDE, SIDE)):
            return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
    raise ValueError(f"{path} is damaged or no file of Fashion-MNIST")
