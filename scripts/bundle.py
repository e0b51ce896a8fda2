"""Convert a checkpoint to safetensors: python scripts/bundle.py checkpoint=run/ema_0.9999_020000.pt out=model.safetensors"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING, DictConfig
from safetensors.torch import save

from sag import storage
from sag.build.objects import log_notes
from sag.checkpoints import read_checkpoint
from sag.devices import PRECISIONS
from scripts.common import run


@dataclass
class BundleConfig:
    """The keys of configs/bundle.yaml and their types; the values are there."""

    checkpoint: str = MISSING
    dtype: str = MISSING
    out: str = MISSING


def main(cfg: DictConfig) -> None:
    """Read the checkpoint, convert, and write the file, which must not be there yet."""
    out = Path(cfg.out)
    if cfg.dtype not in PRECISIONS:
        raise ValueError(f"dtype must be one of {', '.join(PRECISIONS)}, got {cfg.dtype!r}")
    if out.suffix != ".safetensors":
        raise ValueError(f"out={out} must end in .safetensors")
    if out.exists():
        raise ValueError(f"{out} is there already; give another out, or remove it")
    checkpoint = read_checkpoint(cfg.checkpoint)
    log_notes(cfg.checkpoint, checkpoint.notes)
    converted = {name: value.to(PRECISIONS[cfg.dtype]).contiguous() for name, value in checkpoint.state.items()}
    beyond = [name for name, value in converted.items() if not value.isfinite().all()]
    if beyond:
        raise ValueError(f"{', '.join(beyond[:3])} in {cfg.checkpoint} holds values that {cfg.dtype} cannot; use dtype=float32")
    out.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic(out, replace=False) as file:
        file.write(save(converted))
    print(f"wrote {out}: {len(converted)} tensors, {out.stat().st_size / 1e6:.2f} MB, {cfg.dtype}")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "bundle", BundleConfig)


if __name__ == "__main__":
    command()
