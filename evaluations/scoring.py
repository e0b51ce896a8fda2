"""From two batches to scores: which metrics the files can serve, features, then the metrics."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from evaluations.batches import Batch
from evaluations.extraction import FeatureFiles, extract, folder_name
from evaluations.extractors import Extractor
from evaluations.frechet import Moments, Statistics, frechet_distance
from evaluations.inception_score import InceptionScore
from evaluations.kernel import kernel_distance
from evaluations.neighbours import DistanceDtype, density_coverage, precision_recall
from sag.distributed import Process

METRICS = ("fid", "sfid", "is", "precision", "recall", "kid", "density", "coverage")
OF_IMAGES = frozenset(METRICS) - {"fid", "sfid", "is"}  # compare single images, so both sides must have them
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
class Summary:
    """What the metrics need to know of one batch; None where it was not asked for or cannot be had."""

    pool: Statistics | None = None
    spatial: Statistics | None = None
    inception_score: float | None = None
    shuffled_score: float | None = None
    features: Tensor | None = None


def size_name(count: int | None) -> str:
    """The suffix that tells N in a metric's name: _50k, _1234, or nothing where N is not known."""
    if count is None:
        return ""
    return f"_{count // 1000}k" if count % 1000 == 0 and count else f"_{count}"


def check_pair(samples: Batch, reference: Batch, extractor: Extractor) -> None:
    """Raise a ValueError if the two cannot be compared with this extractor."""
    for batch in (samples, reference):
        if batch.extractor is not None and batch.extractor != extractor.id:
            raise ValueError(
                f"the statistics in {batch.path} were made with {batch.extractor}, but the extractor is {extractor.id}; "
                "choose that extractor, or make statistics with scripts/make_reference.py"
            )
    if samples.images is not None and reference.images is not None:
        sizes = [f"{batch.images.shape[1]}x{batch.images.shape[2]}" for batch in (samples, reference) if batch.images]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{samples.path} has images of {sizes[0]}, {reference.path} of {sizes[1]}; scores compare images of one size: "
                "make a reference of that size with scripts/make_reference.py"
            )


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

    work: a folder for the samples' features, shared by all processes, removed at the end. cache: a folder where those of the
    reference are kept, so that they are extracted once.

    Raises:
        ValueError: batches that cannot be compared, damaged files, features that are not finite, nothing to measure.
    """
    process = process or Process()
    check_pair(samples, reference, extractor)
    result = Scores(unavailable=_unavailable(samples, reference, settings))
    asked = [name for name in settings.metrics if name not in result.unavailable]
    if not asked:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.unavailable.items())
        raise ValueError(f"none of the metrics can be measured on these files: {reasons}")
    clock = _Clock(result.seconds)
    files: dict[str, FeatureFiles | None] = {}
    for title, batch, folder in (("reference", reference, cache), ("samples", samples, work)):
        files[title] = None
        if batch.images is not None and _needs_features(batch, asked, batch is samples):
            if process.main:
                batch.images.verify()
            place = folder / folder_name(batch.images, extractor)
            files[title] = extract(batch.images, extractor, place, process, batch_size, title)
            clock.stop(f"features of {title}")
    if not process.main:
        return None
    of_samples = summarise(samples, files["samples"], asked, settings)
    of_reference = summarise(reference, files["reference"], asked)
    clock.stop("moments")
    device = next((parameter.device for parameter in extractor.parameters()), torch.device("cpu"))
    _measure(result, asked, of_samples, of_reference, settings, device, clock)
    result.warnings += [*extractor.notes, *_warnings(samples, reference, of_samples)]
    shutil.rmtree(work, ignore_errors=True)
    return result


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def stop(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = round(now - self.last, 3), now


def _unavailable(samples: Batch, reference: Batch, settings: Settings) -> dict[str, str]:
    reasons = {}
    for name in settings.metrics:
        need = {"density": settings.density_neighbours, "coverage": settings.density_neighbours, "kid": 1}
        for batch in (samples, reference):
            if name == "is" and batch is reference:
                continue
            k = need.get(name, settings.neighbours if name in OF_IMAGES else 0)
            if batch.images is None and (name in OF_IMAGES or name == "is"):
                reasons[name] = f"{batch.path} holds statistics only, no images (arr_0)"
            elif batch.images is None and name == "sfid" and batch.spatial is None:
                reasons[name] = f"{batch.path} holds no spatial statistics (mu_s, sigma_s)"
            elif batch.images is not None and name in OF_IMAGES and len(batch.images) <= k:
                reasons[name] = f"{batch.path} holds {len(batch.images)} images; {k + 1} are needed"
            elif batch.images is not None and len(batch.images) < 2 and name in ("fid", "sfid"):
                reasons[name] = f"{batch.path} holds one image, which has no covariance"
    return reasons


def _needs_features(batch: Batch, asked: list[str], is_samples: bool) -> bool:
    return (
        ("fid" in asked and batch.pool is None)
        or ("sfid" in asked and batch.spatial is None)
        or ("is" in asked and is_samples)
        or bool(OF_IMAGES & set(asked))
    )


def summarise(batch: Batch, files: FeatureFiles | None, asked: list[str], settings: Settings | None = None) -> Summary:
    """One pass over the features; statistics that the file brings are taken from it. settings: for the Inception Score."""
    if files is None:
        return Summary(batch.pool, batch.spatial)
    pool, spatial = Moments(), Moments()
    ordered = shuffled = None
    matrix: Tensor | None = None
    for start, arrays in files:
        if "fid" in asked and batch.pool is None:
            pool.update(arrays["pool"])
        if "sfid" in asked and batch.spatial is None and "spatial" in arrays:
            spatial.update(arrays["spatial"])
        if "is" in asked and settings is not None and "logits" in arrays:
            if ordered is None or shuffled is None:
                ordered = InceptionScore(files.count, settings.is_splits, settings.is_shuffle)
                shuffled = InceptionScore(files.count, settings.is_splits, shuffle=True)
            ordered.update(start, arrays["logits"])
            shuffled.update(start, arrays["logits"])
        if OF_IMAGES & set(asked):
            if matrix is None:
                matrix = torch.empty(files.count, arrays["pool"].shape[1])
            matrix[start : start + len(arrays["pool"])] = torch.from_numpy(arrays["pool"])
    return Summary(
        batch.pool or (pool.statistics() if pool.count else None),
        batch.spatial or (spatial.statistics() if spatial.count else None),
        None if ordered is None else ordered.score(),
        None if shuffled is None else shuffled.score(),
        matrix,
    )


def _measure(
    result: Scores,
    asked: list[str],
    samples: Summary,
    reference: Summary,
    settings: Settings,
    device: torch.device,
    clock: _Clock,
) -> None:
    pairs = {"fid": (samples.pool, reference.pool), "sfid": (samples.spatial, reference.spatial)}
    for name, (a, b) in pairs.items():
        if name in asked and a is not None and b is not None:
            result.values[name] = frechet_distance(a, b)
            clock.stop(name)
        elif name in asked:
            result.unavailable[name] = "the extractor gives no spatial features"
    if "is" in asked and samples.inception_score is not None:
        result.values["is"] = samples.inception_score
    elif "is" in asked:
        result.unavailable["is"] = "the extractor gives no logits"
    if samples.features is None or reference.features is None:
        return
    x, y = samples.features.to(device), reference.features.to(device)
    groups: dict[tuple[str, str], Callable[[], tuple[float, float]]] = {
        ("precision", "recall"): lambda: precision_recall(x, y, settings.neighbours, settings.distance_dtype),
        ("density", "coverage"): lambda: density_coverage(x, y, settings.density_neighbours),
        ("kid", "kid_std"): lambda: kernel_distance(
            x.cpu().numpy(), y.cpu().numpy(), settings.kid_subsets, settings.kid_subset_size
        ),
    }
    for names, measure in groups.items():
        if set(names) & set(asked):
            found = dict(zip(names, measure(), strict=True))
            result.values |= {name: value for name, value in found.items() if name in asked or name == "kid_std"}
            clock.stop(" and ".join(names) if names[0] != "kid" else "kid")


def _warnings(samples: Batch, reference: Batch, summary: Summary) -> list[str]:
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


def table(scores: Scores, count: int | None) -> list[tuple[str, float]]:
    """The scores by the names that carry N, in the usual order."""
    order = [*METRICS, "kid_std"]
    return [(name + size_name(count), scores.values[name]) for name in sorted(scores.values, key=order.index)]
