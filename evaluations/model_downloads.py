"""What published models need from the network, for machines that have none."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sag.build.groups import choices, load_config
from sag.storage import cached, fetch, remote_size, without_digest

PARTS = ("checkpoint", "classifier", "reference", "inception")
_ADDRESSES = (
    ("checkpoint", "model", "checkpoint"),
    ("checkpoint", "model", "autoencoder.checkpoint"),
    ("classifier", "classifier", "checkpoint"),
    ("reference", "model", "reference"),
)


@dataclass(frozen=True)
class Needed:
    """A remote file that a model needs.

    Attributes:
        url: Its address.
        path: Its place on this machine.
        present: Whether it is there.
        size: Bytes, on this machine or else on the server; None if the server does not say.
    """

    url: str
    path: Path
    present: bool
    size: int | None


def download(what: str | Sequence[str], parts: Sequence[str] = PARTS, *, dry_run: bool = False) -> list[Needed]:
    """Download what models need, unless it is there.

    Example:
        >>> from evaluations.model_downloads import download
        >>> download("fashion32", ["checkpoint", "reference"])  # these come with the package
        []

    Args:
        what: A model, several, or "all", which are those of the library diffusers too if that is installed.
        parts: Which of `PARTS`: the weights of the model and of its autoencoder, those of the classifier published with it,
            the images to compare with, and the network that FID needs.
        dry_run: Whether to download nothing, and only say what is there and how large the rest is.

    Raises:
        ValueError: If there is no such model or part.
        CacheError: If the cache cannot be written.
        OSError: If a server cannot be reached or refuses, or a file is incomplete or damaged.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"unknown part {min(unknown)!r}; expected any of {', '.join(PARTS)}")
    urls = list(dict.fromkeys(_addresses(_models(what), parts)))
    found = [_needed(url, cached(url) if dry_run else fetch(url)) for url in urls]
    if "checkpoint" in parts:
        found += [_folder(name, dry_run) for name in _models(what) if _is_folder(name)]
    if urls and "inception" in parts:
        from evaluations import inception  # this imports torch, which nothing else here needs

        found.append(_needed(inception.URL, inception.inception_weights(None, download=not dry_run)))
    return found


def _models(what: str | Sequence[str]) -> list[str]:
    known = [name for name in choices("model") if name not in ("flags", "own_diffusers")]
    if what == "all":
        return known if find_spec("diffusers") else [name for name in known if not _is_folder(name)]
    names = [what] if isinstance(what, str) else list(what)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown model {unknown[0]!r}; expected all or any of {', '.join(known)}")
    return names


def _addresses(names: Sequence[str], parts: Sequence[str]) -> Iterator[str]:
    for name in names:
        for part, group, key in _ADDRESSES:
            config = load_config(group, name) if part in parts else None
            source: Any = config
            for part_of_key in key.split("."):
                source = source.get(part_of_key) if source is not None else None
            if source is not None and "://" in source:
                yield source


def _is_folder(name: str) -> bool:
    """Return whether a model is a folder of the hub, in the format of the library diffusers."""
    config = load_config("model", name)
    return config is not None and "denoiser" in config


def _folder(name: str, dry_run: bool) -> Needed:
    from sag.diffusers.extras import require

    require(f"model={name}")
    from sag.diffusers.loading import cached_folder, fetch_folder  # these import torch, which nothing else here needs

    repository: Any = load_config("model", name).checkpoint  # type: ignore[union-attr]
    there = cached_folder(repository) if dry_run else fetch_folder(repository)
    return Needed(f"https://huggingface.co/{repository}", there or Path(repository), there is not None, None)


def _needed(url: str, path: Path) -> Needed:
    present = os.path.exists(path)  # unlike Path.exists, it raises no error if a parent folder cannot be searched
    return Needed(without_digest(url), path, present, path.stat().st_size if present else remote_size(url))
