"""Score samples: python scripts/evaluate.py samples=samples.npz reference=reference.npz"""

import json
import re
import sys
import tempfile
from dataclasses import asdict, dataclass, field, make_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast, get_origin, get_type_hints

import torch
from common import CONFIGS, pick_device, provenance, run
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from own_model import reference_of

import sag
from evaluations.batches import Batch, open_batch
from evaluations.extraction import FeatureFiles, folder_name
from evaluations.extractors import Extractor
from evaluations.fashion import REFERENCE
from evaluations.metric import Metric
from evaluations.metrics import DEFAULT, METRICS, SETTINGS, choose
from evaluations.scoring import Scores, score, table
from evaluations.self_check import self_check
from sag import storage
from sag.distributed import Process
from sag.storage import cache_folder, fetch


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


def read_metrics(cfg: DictConfig) -> dict[str, Metric[Any]]:
    """The metrics that the config asks for, with their settings."""
    return choose(list(cfg.metrics), {name: cfg[name] for name in SETTINGS})


def find_samples(given: str | None) -> Path:
    """The file or folder of images: as given, that of a run of scripts/sample.py, or that of the newest run in outputs/.

    Raises:
        ValueError: no run that is finished.
    """
    if given is None:
        runs = sorted(Path("outputs").glob("*/samples_*.npz"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise ValueError("samples= is missing, and outputs/ has no finished run; give an npz, or run scripts/sample.py")
        return runs[-1]
    path = fetch(given) if "://" in given else Path(given)
    if not (path / "config.yaml").exists():
        return path
    packed = sorted(path.glob("samples_*.npz"))
    if not packed:
        raise ValueError(f"{path} is a run that is not finished; the same scripts/sample.py command continues it")
    if len(packed) > 1:
        names = ", ".join(file.name for file in packed)
        raise ValueError(f"{path} holds several sample batches ({names}); give one of them as samples={packed[-1]}")
    return packed[0]


def find_reference(given: str | None, samples: Path) -> Path:
    """The reference: as given, or that of the model in the config beside the samples; an address is downloaded into the cache.

    Raises:
        ValueError: neither is there.
    """
    if given is None and (samples.parent / "config.yaml").exists():
        model = OmegaConf.select(OmegaConf.load(samples.parent / "config.yaml"), "model")
        given = reference_of(model) if OmegaConf.is_dict(model) else None
        if given is None and OmegaConf.is_dict(model):
            raise ValueError(
                f"reference= is missing, and {model.get('name')}, the model of {samples}, comes with none: give an npz or a "
                "folder of PNGs of its data; scripts/make_reference.py makes an npz"
            )
    if given is None:
        raise ValueError(
            f"reference= is missing, and no config beside {samples} names one: give an npz or a folder of PNGs; "
            "scripts/make_reference.py makes one"
        )
    if given == "fashion_mnist":
        return REFERENCE
    return fetch(given) if "://" in given else Path(given)


def build_extractor(node: DictConfig | None, reference: Path) -> Extractor:
    """The extractor of the config, or else the one that the reference is for."""
    if node is None:
        name = "fashion_features" if reference == REFERENCE else "inception"
        node = cast(DictConfig, OmegaConf.load(CONFIGS / "extractor" / f"{name}.yaml"))
    extractor: Extractor = instantiate(node)
    return extractor


def check_published(published: DictConfig | None, samples: Batch, extractor: Extractor) -> None:
    """Raise a ValueError if the samples cannot be put beside the published numbers."""
    if published is None:
        return
    if published.extractor != extractor.id:
        raise ValueError(f"{published.source} used {published.extractor}; the extractor here is {extractor.id}")
    if samples.count != published.num_samples and not published.any_n:
        raise ValueError(
            f"{published.source} is about {published.num_samples} samples, {samples.path} holds {samples.count}: "
            "FID depends on their number; published.any_n=true compares all the same"
        )


def out_file(cfg: DictConfig, samples: Batch, identity: dict[str, Any]) -> Path:
    """The JSON of `out`, or one beside the samples, named by everything that decides the scores.

    Raises:
        ValueError: a place that cannot be written.
    """
    name = identity["extractor"].split("/")[0]
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    out = Path(cfg.out) if cfg.out is not None else samples.path.parent / f"{samples.path.stem}.{name}.{digest}.json"
    if out.is_dir():
        raise ValueError(f"out={out} is a folder; give the name of a JSON file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            return out
    except OSError as error:
        raise ValueError(f"{out.parent} cannot be written ({error.strerror}); give another place as out=scores.json") from error


def earlier(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The record in `out` if it answers the same question, None if there is none.

    Raises:
        ValueError: `out` holds something else.
    """
    if not out.exists():
        return None
    try:
        found = json.loads(out.read_bytes())
        if found["identity"] == identity:
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{out} holds something else than scores of these files with these settings; give another out, or remove it"
    )


def show(facts: dict[str, Any], published: DictConfig | None) -> bool:
    """Print the table; whether all values are within the tolerances of the published ones, where there are any."""
    print(f"samples    {facts['samples']}\nreference  {facts['reference']}\nextractor  {facts['extractor']}\n")
    compared = published is not None
    print(f"{'metric':<18}{'value':>14}{'published':>14}{'difference':>14}" if compared else f"{'metric':<18}{'value':>14}")
    good = True
    for name, value in facts["metrics"].items():
        line = f"{name:<18}{value:>14.7g}"
        key = re.sub(r"_\d+k?$", "", name)
        if published is not None and key in published["values"]:
            known, tolerance = published["values"][key], (published.tolerance or {}).get(key)
            line += f"{known:>14.7g}{value - known:>+14.4g}"
            if tolerance is not None:
                within = abs(value - known) <= tolerance
                good &= within
                line += f"   {'within' if within else 'OUTSIDE'} {tolerance:g}"
        print(line)
    for name, reason in facts["unavailable"].items():
        print(f"{name:<18}{'-':>14}  {reason}")
    if published is not None:
        print(f"published: {published.source}, {published.num_samples} samples")
    for warning in facts["warnings"]:
        print(f"warning: {warning}")
    return good


def record(
    scores: Scores, samples: Batch, reference: Batch, identity: dict[str, Any], device: torch.device, process: Process
) -> dict[str, Any]:
    """What a reader of the scores wants to know of how they came about."""
    return {
        "metrics": dict(table(scores)),
        "unavailable": scores.unavailable,
        "warnings": scores.warnings,
        "samples": samples.describe(),
        "reference": reference.describe(),
        "extractor": identity["extractor"],
        "identity": identity,
        **provenance(device),
        "processes": process.world,
        "seconds": scores.seconds,
    }


def main(cfg: DictConfig) -> None:
    """Score by the config, print a table and write a JSON; what is scored already is only printed."""
    if cfg.self_check:
        sys.exit(0 if self_check() else "error: the self-check failed; see the lines marked FAILED")
    if cfg.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {cfg.batch_size}")
    metrics, process = read_metrics(cfg), Process.current()
    device = pick_device(cfg.device, "float32")
    place = find_samples(cfg.samples)
    samples, reference = open_batch(place), open_batch(find_reference(cfg.reference, place))
    extractor = build_extractor(cfg.extractor, reference.path).to(device)
    check_published(cfg.published, samples, extractor)
    identity = json.loads(
        json.dumps(
            {
                "samples": samples.fingerprint,
                "reference": reference.fingerprint,
                "extractor": extractor.id,
                "settings": {"metrics": list(metrics)} | {k: v for m in metrics.values() for k, v in asdict(m).items()},
                "version": sag.__version__,
            }
        )
    )
    out = out_file(cfg, samples, identity)
    facts = earlier(out, identity)
    done = facts is not None
    if facts is None:
        work, cache = out.parent / f".{out.stem}.features", cache_folder() / "features"
        scores = score(
            samples, reference, extractor, metrics, work=work, cache=cache, process=process, batch_size=cfg.batch_size
        )
        if scores is None:
            print(f"rank {process.rank} of {process.world}: its share of the features is extracted")
            return
        facts = record(scores, samples, reference, identity, device, process)
        try:
            with storage.atomic(out, replace=False) as file:
                file.write(storage.to_json(facts))
        except FileExistsError:
            earlier(out, identity)  # another process has just written the same scores
        if samples.images is not None:
            FeatureFiles(work / folder_name(samples.images, extractor), len(samples.images)).remove()
    if not process.main:
        return
    good = show(facts, cfg.published)
    print(f"{'scored already, see' if done else 'wrote'} {out}")
    if not good:
        sys.exit("error: a score is outside the tolerance of the published one")


if __name__ == "__main__":
    run(main, "evaluate", EvaluateConfig)
