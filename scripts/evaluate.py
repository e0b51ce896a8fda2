"""Score samples: python scripts/evaluate.py samples=samples.npz reference=reference.npz"""

import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from evaluations.metrics import DEFAULT, METRICS, SETTINGS
from evaluations.published import Published
from evaluations.score_files import Scored, find_samples, missing_reference, recorded_model, score_files
from evaluations.self_check import self_check
from sag.build.own_model import reference_of
from sag.distributed import Process
from scripts.common import run


@dataclass
class _Keys:
    """The keys of configs/evaluate.yaml that are no settings of metrics, and their types; the values are there."""

    extractor: Any = None
    published: Any = None
    samples: str | None = None
    reference: str | None = None
    metrics: list[str] = field(default_factory=lambda: list(DEFAULT))
    batch_size: int = MISSING
    device: str = MISSING
    out: str | None = None
    self_check: bool = MISSING


def _settings() -> list[Any]:
    """The settings of all metrics as fields that OmegaConf can read, which knows no Literal."""
    hints = {name: hint for kind in METRICS for name, hint in get_type_hints(kind).items()}
    types = {name: str if get_origin(hints[name]) is Literal else hints[name] for name in SETTINGS}
    return [(name, types[name], field(default=setting.default)) for name, setting in SETTINGS.items()]


EvaluateConfig = make_dataclass("EvaluateConfig", _settings(), bases=(_Keys,))
"""All keys of configs/evaluate.yaml; the metrics bring their settings with them."""
ConfigStore.instance().store("evaluate_schema", EvaluateConfig)


def read_published(node: DictConfig | None) -> Published | None:
    """The published numbers of the config, their keys and types checked."""
    found: Any = None if node is None else OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Published), node))
    return found if isinstance(found, Published) else None


def check_lent_reference(given: str | None, samples: Path) -> None:
    """Raise a ValueError if the only reference is that of a config which only lent the model its name."""
    model = recorded_model(samples)
    if given is None and model is not None and model.get("reference") and reference_of(OmegaConf.create(model)) is None:
        raise ValueError(missing_reference(samples))


def show(scored: Scored, published: Published | None) -> bool:
    """Print the table; whether all values are within the tolerances of the published ones, where there are any."""
    facts = scored.record
    print(f"samples    {facts['samples']}\nreference  {facts['reference']}\nextractor  {facts['extractor']}\n")
    heads = ["value", "published", "difference"] if published is not None else ["value"]
    print(f"{'metric':<18}" + "".join(f"{head:>14}" for head in heads))
    good = True
    for label, (name, value) in zip(facts["metrics"], scored.values.items(), strict=True):
        line = f"{label:<18}{value:>14.7g}"
        if published is not None and name in published.values:
            line += f"{published.values[name]:>14.7g}{value - published.values[name]:>+14.4g}"
            within = published.within(name, value)
            if within is not None:
                good &= within
                line += f"   {'within' if within else 'OUTSIDE'} {(published.tolerance or {})[name]:g}"
        print(line)
    for name, reason in facts["unavailable"].items():
        print(f"{name:<18}{'-':>14}  {reason}")
    if published is not None:
        print(f"published: {published.source}, {published.num_samples} samples")
    for warning in facts["warnings"]:
        print(f"warning: {warning}")
    return good


def main(cfg: DictConfig) -> None:
    """Score by the config, print a table and write a JSON; existing scores are only printed."""
    if cfg.self_check:
        sys.exit(0 if self_check() else "error: the self-check failed; see the lines marked FAILED")
    process, samples = Process.current(), find_samples(cfg.samples)
    published = read_published(cfg.published)
    check_lent_reference(cfg.reference, samples)
    scored = score_files(
        samples,
        cfg.reference,
        metrics=list(cfg.metrics),
        settings={name: cfg[name] for name in SETTINGS},
        extractor=None if cfg.extractor is None else instantiate(cfg.extractor),
        published=published,
        device=cfg.device,
        batch_size=cfg.batch_size,
        out=cfg.out,
        process=process,
        progress=True,
    )
    if scored is None:
        print(f"rank {process.rank} of {process.world}: its share of the features is extracted")
        return
    good = show(scored, published)
    print(f"{'wrote' if scored.new else 'scored already, see'} {scored.path}")
    if not good:
        sys.exit("error: a score is outside the tolerance of the published one")


if __name__ == "__main__":
    run(main, "evaluate", EvaluateConfig)
