"""Score a file or folder of samples: the function behind scripts/evaluate.py."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import yaml

import sag
from evaluations.batches import Batch, open_batch
from evaluations.extraction import FeatureFiles, folder_name
from evaluations.extractors import Extractor
from evaluations.fashion import REFERENCE, FashionFeatures
from evaluations.inception import Inception
from evaluations.metric import Metric, check_count
from evaluations.metrics import DEFAULT, choose
from evaluations.published import Published
from evaluations.scoring import Scores, score, table
from sag.devices import pick_device
from sag.distributed import Process
from sag.records import provenance
from sag.storage import atomic, cache_folder, fetch, to_json


@dataclass(frozen=True)
class Scored:
    """The scores of a sample batch.

    Attributes:
        values: Values by name. Names do not include N.
        count: Number of samples; None if a file of statistics does not state it.
        identity: What determines the scores: fingerprints of samples and reference, extractor, settings and version.
        record: The content of the file: values by names with N, reasons of missing values, warnings, versions, device, ...
        path: The JSON file.
        new: Whether the scores were measured now. Otherwise they were read from the file.
    """

    values: dict[str, float]
    count: int | None
    identity: dict[str, Any]
    record: dict[str, Any]
    path: Path
    new: bool


def score_files(
    samples: str | Path | None,
    reference: str | Path | None = None,
    *,
    metrics: Sequence[str | Metric[Any]] = DEFAULT,
    settings: Mapping[str, Any] | None = None,
    extractor: Extractor | None = None,
    published: Published | None = None,
    device: str = "auto",
    batch_size: int = 32,
    out: str | Path | None = None,
    process: Process | None = None,
    progress: bool = False,
) -> Scored | None:
    """Score samples against a reference and record the scores in a file. Existing scores are read from the file.

    Example:
        >>> import numpy as np
        >>> from evaluations.fashion import REFERENCE
        >>> from evaluations.score_files import score_files
        >>> with np.load(REFERENCE) as arrays:
        ...     np.savez("samples.npz", arr_0=arrays["arr_0"][:500])
        >>> scored = score_files("samples.npz", "fashion_mnist", metrics=["fid", "is"], settings={"is_splits": 10})
        >>> scored.count, {name: round(value, 1) for name, value in scored.values.items()}
        (500, {'fid': 0.2, 'is': 7.5})
        >>> score_files("samples.npz", "fashion_mnist", metrics=["fid", "is"], settings={"is_splits": 10}).new
        False

    Args:
        samples: An npz (a path or an address), a folder of PNGs, or the folder of a run; by default the newest finished run in
            outputs/.
        reference: An npz (a path or an address), a folder of PNGs, or "fashion_mnist"; by default the reference of the model
            that made the samples.
        metrics: Names of values (`python -m evaluations.metrics` lists them), or metrics of your own.
        settings: Settings of the metrics that differ from the defaults.
        extractor: The feature network; by default `FashionFeatures` for the bundled reference, and `Inception` for others.
        published: Numbers to compare the scores with. Samples that cannot be compared are refused before any work.
        device: "cpu", "cuda", "cuda:N", or "auto".
        batch_size: Number of images that the extractor is given at once.
        out: The JSON file for the scores; by default a file next to the samples.
        process: This process, if several share the work; by default as the launcher started it.
        progress: Whether to show progress bars on stderr.

    Returns:
        The scores; None in all processes except the main one.

    Raises:
        ValueError: If a file, a setting or `out` cannot be used. The message says what to change.
        OSError: If a file does not exist or cannot be downloaded.
    """
    check_count("batch_size", batch_size)
    chosen, process = choose(metrics, settings), process or Process.current()
    where = pick_device(device)
    place = find_samples(samples)
    opened, compared = open_batch(place), _open_reference(reference, place, chosen)
    network = (extractor or _default_extractor(compared)).to(where)
    if published is not None:
        published.check(opened, network.id)
    identity = _identity(opened, compared, network, chosen)
    path = _out_file(out, opened, identity)
    facts = _earlier(path, identity)
    new = facts is None
    if facts is None:
        work = path.parent / f".{path.stem}.features"
        scores = score(
            opened,
            compared,
            network,
            chosen,
            work=work,
            cache=cache_folder() / "features",
            process=process,
            batch_size=batch_size,
            progress=progress,
        )
        if scores is None:
            return None
        facts = _record(scores, opened, compared, identity, where, process)
        try:
            with atomic(path, replace=False) as file:
                file.write(to_json(facts))
        except FileExistsError:
            _earlier(path, identity)  # another process has just written the same scores
        if opened.images is not None:
            FeatureFiles(work / folder_name(opened.images, network), len(opened.images)).remove()
    if not process.main:
        return None
    return Scored(_values(facts["metrics"], chosen), opened.count, identity, facts, path, new)


def find_samples(given: str | Path | None) -> Path:
    """Find the file or folder of samples.

    Args:
        given: A file, an address, a folder of images, or the folder of a run; by default the newest run in outputs/.

    Returns:
        The path of an npz or of a folder of images.

    Raises:
        ValueError: If there is no run, or the run is not finished.
    """
    if given is None:
        runs = sorted(Path("outputs").glob("*/samples_*.npz"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise ValueError("samples= is missing, and outputs/ has no finished run; give an npz, or run scripts/sample.py")
        return runs[-1]
    path = _fetched(given)
    if not (path / "config.yaml").exists():
        return path
    packed = sorted(path.glob("samples_*.npz"))
    if not packed:
        raise ValueError(f"{path} is a run that is not finished; the same scripts/sample.py command continues it")
    if len(packed) > 1:
        names = ", ".join(file.name for file in packed)
        raise ValueError(f"{path} holds several sample batches ({names}); give one of them as samples={packed[-1]}")
    return packed[0]


def find_reference(given: str | Path | None, samples: Path) -> Path | None:
    """Find the reference, and download it into the cache if it is an address.

    Args:
        given: A file, an address, a folder, or "fashion_mnist"; by default the reference of the model in the config next to
            the samples.
        samples: The path of the samples.

    Returns:
        The path of the reference; None if there is none.
    """
    if given is None:
        given = (recorded_model(samples) or {}).get("reference")
    if not isinstance(given, str | Path):  # there is none, or the config is not of this project
        return None
    return REFERENCE if given == "fashion_mnist" else _fetched(given)


def recorded_model(samples: Path) -> dict[str, Any] | None:
    """Return the model in the config next to the samples; None if there is no config of a run."""
    try:
        found = yaml.safe_load((samples.parent / "config.yaml").read_bytes())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    model = found.get("model") if isinstance(found, dict) else None
    return model if isinstance(model, dict) else None


def missing_reference(samples: Path) -> str:
    """Return the message for samples without a reference."""
    model = recorded_model(samples)
    if model is None:
        return (
            f"reference= is missing, and no config next to {samples} names one: give an npz or a folder of PNGs; "
            "scripts/make_reference.py makes one"
        )
    return (
        f"reference= is missing, and {model.get('name')}, the model of {samples}, has none: give an npz or a folder of PNGs "
        "of its data; scripts/make_reference.py makes an npz"
    )


def _fetched(given: str | Path) -> Path:
    return fetch(given) if isinstance(given, str) and "://" in given else Path(given)


def _open_reference(given: str | Path | None, samples: Path, metrics: Mapping[str, Metric[Any]]) -> Batch | None:
    path = find_reference(given, samples)
    if path is not None:
        return open_batch(path)
    if any(metric.reference for metric in metrics.values()):
        raise ValueError(missing_reference(samples))
    return None


def _default_extractor(reference: Batch | None) -> Extractor:
    return FashionFeatures() if reference is not None and reference.path == REFERENCE else Inception()


def _identity(
    samples: Batch, reference: Batch | None, extractor: Extractor, metrics: Mapping[str, Metric[Any]]
) -> dict[str, Any]:
    """Return what determines the scores, as JSON values. It has only the settings of the metrics that are measured."""
    settings = {name: value for metric in metrics.values() for name, value in asdict(metric).items()}
    identity = {
        "samples": samples.fingerprint,
        "reference": None if reference is None else reference.fingerprint,
        "extractor": extractor.id,
        "settings": {"metrics": list(metrics), **settings},
        "version": sag.__version__,
    }
    decided: dict[str, Any] = json.loads(json.dumps(identity))
    return decided


def _out_file(given: str | Path | None, samples: Batch, identity: Mapping[str, Any]) -> Path:
    name = identity["extractor"].split("/")[0]
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    out = Path(given) if given is not None else samples.path.parent / f"{samples.path.stem}.{name}.{digest}.json"
    if out.is_dir():
        raise ValueError(f"out={out} is a folder; give the name of a JSON file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            return out
    except OSError as error:
        raise ValueError(f"{out.parent} cannot be written ({error.strerror}); give another place as out=scores.json") from error


def _earlier(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record in `out` if it has the same identity; None if there is no file."""
    if not out.exists():
        return None
    try:
        found = json.loads(out.read_bytes())
        there = {**found["identity"], "settings": dict(found["identity"]["settings"])}
        for name in there["settings"].keys() - identity["settings"].keys():  # settings of metrics that were not measured
            del there["settings"][name]
        if there == identity:
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{out} is there already, and does not hold scores of these files with these settings; give another out, or remove it"
    )


def _record(
    scores: Scores,
    samples: Batch,
    reference: Batch | None,
    identity: Mapping[str, Any],
    device: torch.device,
    process: Process,
) -> dict[str, Any]:
    """Return the content of the JSON file: the scores, and how they were made."""
    return {
        "metrics": dict(table(scores)),
        "unavailable": scores.unavailable,
        "warnings": scores.warnings,
        "samples": samples.describe(),
        "reference": "none" if reference is None else reference.describe(),
        "extractor": identity["extractor"],
        "identity": identity,
        **provenance(device),
        "processes": process.world,
        "seconds": scores.seconds,
    }


def _values(recorded: Mapping[str, float], metrics: Mapping[str, Metric[Any]]) -> dict[str, float]:
    """Return the values of a record by names without N."""
    names = [*metrics, *(name for metric in metrics.values() for name in metric.extras)]
    return {
        name: value
        for label, value in recorded.items()
        for name in dict.fromkeys(names)
        if re.fullmatch(rf"{re.escape(name)}(_\d+k?)?", label)
    }
