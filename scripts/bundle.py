"""Convert a checkpoint to safetensors: python scripts/bundle.py checkpoint=run/ema_0.9999_020000.pt out=model.safetensors"""

from dataclasses import dataclass

from omegaconf import MISSING, DictConfig

from scripts.common import run


@dataclass
class BundleConfig:
    """The keys of configs/bundle.yaml and their types; the values are there."""

    checkpoint: str = MISSING
    dtype: str = MISSING
    out: str = MISSING


def main(cfg: DictConfig) -> None:
    """Convert the checkpoint of the config."""
    from sag.conversion import convert_checkpoint  # this imports torch, which --help does without

    made = convert_checkpoint(cfg.checkpoint, cfg.out, cfg.dtype)
    print(f"wrote {made.path}: {made.tensors} tensors, {made.size / 1e6:.2f} MB, {made.dtype}")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "bundle", BundleConfig)


if __name__ == "__main__":
    command()
