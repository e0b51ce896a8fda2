"""Prefetch what models need, for machines without a network: python scripts/download.py what=adm_imagenet128"""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from evaluations.model_downloads import download
from scripts.common import run


@dataclass
class DownloadConfig:
    """The keys of configs/download.yaml and their types; the values are there."""

    what: Any = MISSING
    parts: list[str] = MISSING
    dry_run: bool = MISSING


def main(cfg: DictConfig) -> None:
    """Fetch what is not there, and say where everything is."""
    settings: Any = OmegaConf.to_container(cfg)
    found = download(settings["what"], settings["parts"], dry_run=cfg.dry_run)
    if not found:
        print("nothing to download: what these models need comes with the package")
    for file in found:
        size = "?" if file.size is None else f"{file.size / 1e9:.2f}"
        if not cfg.dry_run:
            print(file.path)
        else:
            print(f"there      {file.path}" if file.present else f"{size} GB    {file.url}")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "download", DownloadConfig)


if __name__ == "__main__":
    command()
