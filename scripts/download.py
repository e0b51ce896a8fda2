"""Prefetch what models need, for machines without a network: python scripts/download.py what=adm_imagenet128"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from evaluations.inception import inception_weights
from sag.build.messages import CONFIGS
from sag.storage import cached, fetch, remote_size
from scripts.common import run

PARTS = ("checkpoint", "classifier", "reference", "inception")


@dataclass
class DownloadConfig:
    """The keys of configs/download.yaml and their types; the values are there."""

    what: Any = MISSING
    parts: list[str] = MISSING
    dry_run: bool = MISSING


def models(what: Any) -> list[str]:
    """The names asked for.

    Raises:
        ValueError: an unknown one.
    """
    known = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml") if OmegaConf.load(path).checkpoint is not None)
    if what == "all":
        return known
    names = [what] if isinstance(what, str) else list(what)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown model {unknown[0]!r}; expected all or any of {', '.join(known)}")
    return names


def addresses(names: Sequence[str], parts: Sequence[str]) -> Iterator[str]:
    """What the configs of models name: addresses of their checkpoints, of their classifiers' and of their references."""
    for name in names:
        for group, part, key in (
            ("model", "checkpoint", "checkpoint"),
            ("classifier", "classifier", "checkpoint"),
            ("model", "reference", "reference"),
        ):
            path = CONFIGS / group / f"{name}.yaml"
            source = OmegaConf.select(OmegaConf.load(path), key) if part in parts and path.exists() else None
            if source is not None and "://" in source:
                yield source


def main(cfg: DictConfig) -> None:
    """Fetch what is not there, and say where everything is."""
    unknown = set(cfg.parts) - set(PARTS)
    if unknown:
        raise ValueError(f"unknown part {min(unknown)!r}; expected any of {', '.join(PARTS)}")
    found = list(dict.fromkeys(addresses(models(cfg.what), cfg.parts)))
    if not found:
        print("nothing to download: what these models need comes with the package")
        return
    for url in found:
        if cfg.dry_run:
            report(cached(url), url)
        else:
            print(fetch(url), flush=True)
    if "inception" in cfg.parts:
        where = inception_weights(None, download=not cfg.dry_run)
        if cfg.dry_run:
            report(where, URL_INCEPTION_V3)
        else:
            print(where)


def report(place: Path, url: str) -> None:
    """Say that a file is there, or how large it is."""
    if place.exists():
        print(f"there      {place}")
    else:
        size = remote_size(url)
        print(f"{'?' if size is None else f'{size / 1e9:.2f}'} GB    {url}", flush=True)


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "download", DownloadConfig)


if __name__ == "__main__":
    command()
