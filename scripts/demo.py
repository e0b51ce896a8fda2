"""Every guidance from the same noise, scored and drawn: python scripts/demo.py"""

from dataclasses import dataclass

from omegaconf import MISSING, DictConfig

from scripts.common import run


@dataclass
class DemoConfig:
    """The keys of configs/demo.yaml and their types; the values are there."""

    num_samples: int = MISSING
    common: list[str] = MISSING
    rows: dict[str, list[str]] = MISSING
    seed: int = MISSING
    device: str = MISSING
    out: str = MISSING


def main(cfg: DictConfig) -> None:
    """Sample, score and draw the rows, and print their table."""
    from evaluations.study.compare import compare  # this and what follows import torch, which --help does without
    from evaluations.study.tables import as_text

    compared = compare(cfg.rows, cfg.out, cfg.common, cfg.num_samples, cfg.seed, cfg.device, progress=True)
    if compared is not None:
        print(as_text([compared.table]))
        print(f"wrote {', '.join(file.name for file in compared.files)} to {cfg.out}")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "demo", DemoConfig)


if __name__ == "__main__":
    command()
