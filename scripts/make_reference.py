"""Make a reference batch: python scripts/make_reference.py data=folder data.path=... data.size=256 out=reference.npz"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig

from evaluations.batches import write_reference
from evaluations.extraction import extract, folder_name
from evaluations.frechet import Moments
from sag.data import ImageSource, SelectedImages
from sag.devices import pick_device
from sag.distributed import Process
from sag.noise import check_word
from scripts.common import run


@dataclass
class MakeReferenceConfig:
    """The keys of configs/make_reference.yaml and their types; the values are there."""

    extractor: Any = MISSING
    data: Any = MISSING
    num_images: int = MISSING
    limit: int | None = None
    seed: int = MISSING
    compact: bool = MISSING
    batch_size: int = MISSING
    device: str = MISSING
    out: str = MISSING


def choose(count: int, available: int, seed: int, key: str) -> np.ndarray:
    """`count` of `available` indices, drawn without replacement, in ascending order.

    Raises:
        ValueError: more than there are, less than one, or an impossible seed.
    """
    check_word("seed", seed)
    if not 1 <= count <= available:
        raise ValueError(f"{key}={count} images are asked for, but the data has {available}")
    return np.sort(np.random.default_rng(seed).choice(available, count, replace=False))


def main(cfg: DictConfig) -> None:
    """Extract features of the data, and write statistics of all images and some of the images."""
    out, process = Path(cfg.out), Process.current()
    if out.suffix != ".npz":
        raise ValueError(f"out={out} must end in .npz")
    if out.exists():
        raise ValueError(f"{out} is there already; give another out, or remove it")
    if cfg.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {cfg.batch_size}")
    device = pick_device(cfg.device, "float32")
    data: ImageSource = instantiate(cfg.data)
    if cfg.limit is not None:
        data = SelectedImages(data, choose(cfg.limit, len(data), cfg.seed, "limit"))
    kept = choose(min(cfg.num_images, len(data)), len(data), cfg.seed, "num_images")
    extractor = instantiate(cfg.extractor).to(device)
    work = out.with_name(f".{out.stem}.features")
    files = extract(data, extractor, work / folder_name(data, extractor), process, cfg.batch_size, "data")
    if not process.main:
        print(f"rank {process.rank} of {process.world}: its share of the features is extracted")
        return
    pool, spatial = Moments(), Moments()
    for _, arrays in files:
        pool.update(arrays["pool"])
        if "spatial" in arrays:
            spatial.update(arrays["spatial"])
    of_spatial = spatial.statistics() if spatial.count else None
    write_reference(out, data, kept, pool.statistics(), of_spatial, extractor.id, compact=cfg.compact)
    files.remove()
    print(f"wrote {out}: statistics of {len(data)} images, {len(kept)} images, {extractor.id}")
    for note in extractor.notes:
        print(f"warning: {note}")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "make_reference", MakeReferenceConfig)


if __name__ == "__main__":
    command()
