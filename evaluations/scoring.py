"""From two batches to scores: which metrics the files can serve, features, then the metrics."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from evaluations.batches import Batch
from evaluations.extraction import FeatureFiles, extract, folder_name
from evaluations.extractors import Extractor, Features
from evaluations.frechet import Moments, Statistics, frechet_distance
from evaluations.inception_score import InceptionScore
from evaluations.kernel import kernel_distance
from evaluations.neighbours import DistanceDtype, density_coverage, precision_recall
from sag.distributed import Process
from sag.storage import eight_bits, writing_cache

METRICS = ("fid", "sfid", "is", "precision", "recall", "kid", "density", "coverage", "agreement")
OF_SAMPLES = frozenset({"is", "agreement"})  # need no reference
OF_IMAGES = frozenset(METRICS) - OF_SAMPLES - {"fid", "sfid"}  # compare single images, so both sides must have them
FEW = 2048  # fewer images than Inception features: FID is mostly bias
SORTED = 0.8  # a lower share of the score in random order means that the file is sorted


@dataclass(frozen=True)
class Settings:
    """What is measured and how; the defaults are those of ADM's evaluator, but for distance_dtype, where it has float16."""

    metrics: tuple[str, ...] = METRICS
    distance_dtype: DistanceDtype = "float32"
    neighbours: int = 3
    density_neighbours: int = 5
    is_splits: int | None = None
    is_shuffle: bool = False
    kid_subsets: int = 100
    kid_subset_size: int = 1000

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"unknown metric {', '.join(map(repr, unknown))}; expected any of {', '.join(METRICS)}")
        if self.distance_dtype not in ("float32", "float16"):
            raise ValueError(f"distance_dtype must be float32 or float16 (as ADM's evaluator), got {self.distance_dtype!r}")
        for name in ("neighbours", "density_neighbours", "kid_subsets", "kid_subset_size"):
            if getattr(self, name) < 1 + (name == "kid_subset_size"):
                raise ValueError(f"{name} must be at least {1 + (name == 'kid_subset_size')}, got {getattr(self, name)}")
        if self.is_splits is not None and self.is_splits < 1:
            raise ValueError(f"is_splits must be at least 1 or null, got {self.is_splits}")


@dataclass
class Scores:
    """values by metric name (without N); reasons for those that could not be had; warnings; seconds by stage."""

    values: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Summary:
    """What the metrics need to know of one batch; None where it was not asked for or cannot be had."""

    pool: Statistics | None = None
    spatial: Statistics | None = None
    inception_score: float | None = None
    shuffled_score: float | None = None
    features: Tensor | None = None
    agreement: float | None = None


def size_name(count: int | None) -> str:
    """The suffix that tells N in a metric's name: _50k, _1234, or nothing where N is not known."""
    if count is None:
        return ""
    return f"_{count // 1000}k" if count % 1000 == 0 and count else f"_{count}"


def score(
    samples: Batch,
    reference: Batch,
    extractor: Extractor,
    settings: Settings,
    *,
    work: Path,
    cache: Path,
    process: Process | None = None,
    batch_size: int = 32,
) -> Scores | None:
    """Score samples against a reference. Returns None in all processes but the main one.

    work: a folder for the samples' features, shared by all processes; whoever calls removes it. cache: a folder where those of
    the reference stay, so that they are extracted once.

    Raises:
        ValueError: batches that cannot be compared, damaged files, features that are not finite, nothing to measure.
    """
    process = process or Process()
    probe = _check_pair(samples, reference, extractor)
    result = Scores(unavailable=_unavailable(samples, reference, settings, extractor, probe))
    asked = {name for name in settings.metrics if name not in result.unavailable}
    if not asked:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.unavailable.items())
        raise ValueError(f"none of the metrics can be measured on these files: {reasons}")
    clock = _Clock(result.seconds)
    files: dict[str, FeatureFiles | None] = {"samples": None, "reference": None}
    for title, batch, folder in (("reference", reference, cache), ("samples", samples, work)):
        wanted = asked - OF_SAMPLES if batch is reference else asked
        stored = {"fid": batch.pool, "sfid": batch.spatial}
        if batch.images is not None and any(stored.get(name) is None for name in wanted):
            place = folder / folder_name(batch.images, extractor)
            with writing_cache(place) if batch is reference else contextlib.nullcontext():
                files[title] = extract(batch.images, extractor, place, process, batch_size, title)
            clock.stop(f"features of {title}")
    if not process.main:
        return None
    of_samples = _summarise(samples, files["samples"], asked, settings)
    of_reference = _summarise(reference, files["reference"], asked - OF_SAMPLES, settings)
    clock.stop("moments")
    device = next((parameter.device for parameter in extractor.parameters()), torch.device("cpu"))
    _measure(result, asked, of_samples, of_reference, settings, device, clock)
    result.warnings += [*extractor.notes, *_warnings(samples, reference, of_samples)]
    return result


def _check_pair(samples: Batch, reference: Batch, extractor: Extractor) -> Features | None:
    """Raise a ValueError if the two cannot be compared with this extractor; the features of one image, if there is any."""
    sizes: list[str] = []
    probe: Features | None = None
    for batch in (samples, reference):
        if batch.extractor is not None and batch.extractor != extractor.id:
            raise ValueError(
                f"the statistics in {batch.path} were made with {batch.extractor}, but the extractor is {extractor.id}; "
                "choose that extractor, or make statistics with scripts/make_reference.py"
            )
        if batch.images is not None:
            sizes.append(f"{batch.images.shape[1]}x{batch.images.shape[2]}")
            if probe is None:
                probe = extractor(torch.from_numpy(eight_bits(batch.images.read(0, 1))).permute(0, 3, 1, 2))
    if len(set(sizes)) > 1:
        raise ValueError(
            f"{samples.path} has images of {sizes[0]}, {reference.path} of {sizes[1]}; scores compare images of one size: "
            "make a reference of that size with scripts/make_reference.py"
        )
    for batch in (samples, reference):
        for name, statistics in (("pool", batch.pool), ("spatial", batch.spatial)):
            features = getattr(probe, name) if probe is not None else None
            if statistics is not None and features is not None and features.shape[1] != len(statistics.mean):
                raise ValueError(
                    f"the statistics of {name} features in {batch.path} have {len(statistics.mean)} dimensions, "
                    f"{extractor.id} gives {features.shape[1]}: they are of another extractor"
                )
    return probe


def _unavailable(
    samples: Batch, reference: Batch, settings: Settings, extractor: Extractor, probe: Features | None
) -> dict[str, str]:
    needed = {
        "is": settings.is_splits or 1,
        "precision": settings.neighbours + 1,
        "recall": settings.neighbours + 1,
        "density": settings.density_neighbours + 1,
        "coverage": settings.density_neighbours + 1,
    }
    reasons = {}
    for name in settings.metrics:
        for batch in (samples,) if name in OF_SAMPLES else (samples, reference):
            stored = {"fid": batch.pool, "sfid": batch.spatial}.get(name)
            if stored is not None:
                continue
            if batch.images is None and name == "sfid":
                reasons[name] = f"{batch.path} holds no spatial statistics (mu_s, sigma_s)"
            elif batch.images is None:
                reasons[name] = f"{batch.path} holds statistics only, no images (arr_0)"
            elif len(batch.images) < needed.get(name, 2):
                reasons[name] = f"{batch.path} holds {len(batch.images)} images; {needed.get(name, 2)} are needed"
            elif probe is not None and name == "sfid" and probe.spatial is None:
                reasons[name] = "the extractor gives no spatial features"
            elif probe is not None and name == "is" and probe.logits is None:
                reasons[name] = "the extractor gives no logits"
            elif name == "agreement":
                reason = _no_agreement(batch, extractor.classes)
                if reason is not None:
                    reasons[name] = reason
    return reasons


def _no_agreement(samples: Batch, classes: int | None) -> str | None:
    if classes is None:
        return "the extractor does not classify by the labels of samples"
    labels = None if samples.images is None else samples.images.labels()
    if labels is None:
        return f"{samples.path} holds no labels (arr_1)"
    if labels.min() < 0 or labels.max() >= classes:
        return f"{samples.path} has labels outside [0, {classes}): samples of no class"
    return None


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def stop(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = round(now - self.last, 3), now


def _summarise(batch: Batch, files: FeatureFiles | None, asked: set[str], settings: Settings) -> _Summary:
    """One pass over the features; statistics that the file brings are taken from it."""
    if files is None:
        return _Summary(batch.pool, batch.spatial)
    pool, spatial = Moments(), Moments()
    ordered = shuffled = None
    if "is" in asked:
        ordered = InceptionScore(files.count, settings.is_splits, settings.is_shuffle)
        shuffled = InceptionScore(files.count, settings.is_splits, shuffle=True)
    labels = batch.images.labels() if "agreement" in asked and batch.images is not None else None
    recognised = 0
    matrix: Tensor | None = None
    for start, arrays in files:
        if "fid" in asked and batch.pool is None:
            pool.update(arrays["pool"])
        if "sfid" in asked and batch.spatial is None:
            spatial.update(arrays["spatial"])
        for inception_score in (ordered, shuffled):
            if inception_score is not None:
                inception_score.update(start, arrays["logits"])
        if labels is not None:
            recognised += int((arrays["logits"].argmax(1) == labels[start : start + len(arrays["logits"])]).sum())
        if OF_IMAGES & asked:
            if matrix is None:
                matrix = torch.empty(files.count, arrays["pool"].shape[1])
            matrix[start : start + len(arrays["pool"])] = torch.from_numpy(arrays["pool"])
    return _Summary(
        batch.pool or (pool.statistics() if pool.count else None),
        batch.spatial or (spatial.statistics() if spatial.count else None),
        None if ordered is None else ordered.score(),
        None if shuffled is None else shuffled.score(),
        matrix,
        None if labels is None else recognised / files.count,
    )


def _measure(
    result: Scores,
    asked: set[str],
    samples: _Summary,
    reference: _Summary,
    settings: Settings,
    device: torch.device,
    clock: _Clock,
) -> None:
    for name, a, b in (("fid", samples.pool, reference.pool), ("sfid", samples.spatial, reference.spatial)):
        if name in asked and a is not None and b is not None:
            result.values[name] = frechet_distance(a, b)
            clock.stop(name)
    if samples.inception_score is not None:
        result.values["is"] = samples.inception_score
    if samples.agreement is not None:
        result.values["agreement"] = samples.agreement
    if samples.features is None or reference.features is None:
        return
    x, y = samples.features, reference.features
    groups: dict[tuple[str, str], Callable[[], tuple[float, float]]] = {
        ("precision", "recall"): lambda: precision_recall(
            x.to(device), y.to(device), settings.neighbours, settings.distance_dtype
        ),
        ("density", "coverage"): lambda: density_coverage(x.to(device), y.to(device), settings.density_neighbours),
        ("kid", "kid_std"): lambda: kernel_distance(x.numpy(), y.numpy(), settings.kid_subsets, settings.kid_subset_size),
    }
    for names, measure in groups.items():
        if asked & set(names):
            found = dict(zip(names, measure(), strict=True))
            result.values |= {name: value for name, value in found.items() if name in asked or name == "kid_std"}
            clock.stop(" and ".join(name for name in names if name != "kid_std"))


def _warnings(samples: Batch, reference: Batch, summary: _Summary) -> list[str]:
    found = []
    for batch, name in ((samples, "samples"), (reference, "reference images")):
        count = batch.count
        if count is not None and count < FEW:
            found.append(f"there are only {count} {name}: below {FEW}, FID tells their number more than their quality")
    ordered, shuffled = summary.inception_score, summary.shuffled_score
    if ordered is not None and shuffled is not None and ordered < SORTED * shuffled:
        found.append(
            f"the samples look sorted by class: IS is {ordered:.2f} in file order and {shuffled:.2f} in random order "
            "(is_shuffle=true)"
        )
    return found


def table(scores: Scores, samples: Batch) -> list[tuple[str, float]]:
    """The scores by the names that carry N, in the usual order."""
    counts = dict.fromkeys(("fid", "sfid"), samples.count)
    images = None if samples.images is None else len(samples.images)
    order = [*METRICS, "kid_std"]
    return [
        (name + size_name(counts.get(name, images)), scores.values[name]) for name in sorted(scores.values, key=order.index)
    ]
