"""Make a reference batch: python scripts/make_reference.py data=folder data.path=... data.size=256 out=reference.npz"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig

from sag.distributed import Process
from sag.storage import check_new
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


def main(cfg: DictConfig) -> None:
    """Make the reference of the config, as one of any number of processes."""
    from evaluations.reference import make_reference  # this imports torch, which --help does without

    process = Process.current()
    check_new(Path(cfg.out), ".npz")  # before the weights of the extractor are fetched
    made = make_reference(
        instantiate(cfg.data),
        instantiate(cfg.extractor),
        cfg.out,
        num_images=cfg.num_images,
        limit=cfg.limit,
        seed=cfg.seed,
        compact=cfg.compact,
        batch_size=cfg.batch_size,
        device=cfg.device,
        process=process,
        progress=True,
    )
    if made is None:
        print(f"rank {process.rank} of {process.world}: its share of the features is extracted")
        return
    print(f"wrote {made.path}: statistics of {made.count} images, {made.kept} images, {made.extractor}")
    for note in made.notes:
        print(f"warning: {note}")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "make_reference", MakeReferenceConfig)


if __name__ == "__main__":
    command()
