"""From the config of scripts/evaluate.py to scores. Apart from evaluations.study, only this module imports Hydra."""

from pathlib import Path

import evaluations.evaluate_config  # noqa: F401  makes configs/evaluate.yaml known
from evaluations.metrics import SETTINGS
from evaluations.published import Published
from evaluations.score_files import Scored, find_samples, missing_reference, recorded_model, score_files
from sag.build.configs import Config, as_dataclass, instantiate
from sag.build.own_model import reference_of
from sag.distributed import Process


def published(node: Config | None) -> Published | None:
    """Return the published numbers of a config, after checking their keys and types."""
    return None if node is None else as_dataclass(Published, node)


def _check_lent_reference(given: str | None, samples: Path) -> None:
    """Raise a ValueError if the only reference belongs to a model config whose network or weights were replaced."""
    model = recorded_model(samples)
    if given is None and model is not None and model.get("reference") and reference_of(model) is None:
        raise ValueError(missing_reference(samples))


def score(cfg: Config, process: Process | None = None, progress: bool = False) -> Scored | None:
    """Score samples according to a config.

    Example:
        >>> import numpy as np
        >>> import sag
        >>> from evaluations import build
        >>> from evaluations.fashion import REFERENCE
        >>> with np.load(REFERENCE) as arrays:
        ...     np.savez("images.npz", arr_0=arrays["arr_0"][:300])
        >>> cfg = sag.compose("evaluate", ["samples=images.npz", "reference=fashion_mnist", "metrics=[fid]", "device=cpu"])
        >>> scored = build.score(cfg)
        >>> scored.count, list(scored.values)
        (300, ['fid'])

    Args:
        cfg: A config composed from configs/evaluate.yaml.
        process: See `score_files`.
        progress: See `score_files`.

    Returns:
        The scores; None in all processes except the main one.

    Raises:
        ValueError: See `score_files`.
        OSError: See `score_files`.
    """
    samples = find_samples(cfg.samples)
    _check_lent_reference(cfg.reference, samples)
    return score_files(
        samples,
        cfg.reference,
        metrics=list(cfg.metrics),
        settings={name: cfg[name] for name in SETTINGS},
        extractor=None if cfg.extractor is None else instantiate(cfg.extractor),
        published=published(cfg.published),
        device=cfg.device,
        batch_size=cfg.batch_size,
        out=cfg.out,
        process=process,
        progress=progress,
    )
