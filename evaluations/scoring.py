"""From two batches to scores: choosing the metrics that the files allow, computing features, then the metrics."""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evaluations.batches import Batch
from evaluations.extraction import FeatureFiles, extract, folder_name
from evaluations.extractors import Extractor, Features
from evaluations.metric import Metric, Summary, Unavailable
from evaluations.metrics import NAMES, size_name
from sag.data import eight_bits
from sag.distributed import Process
from sag.storage import writing_cache


@dataclass
class Scores:
    """The scores of a sample batch.

    Attributes:
        values: Values by name. Names do not include N.
        counts: Number of images of each value; None if the file does not state it.
        unavailable: Why the other values could not be measured.
        warnings: Warnings about the values, one sentence each.
        seconds: Seconds of each stage.
    """

    values: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int | None] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def score(
    samples: Batch,
    reference: Batch | None,
    extractor: Extractor,
    metrics: Mapping[str, Metric[Any]],
    *,
    work: Path,
    cache: Path,
    process: Process | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Scores | None:
    """Score samples, against a reference if a metric needs one.

    Args:
        samples: The samples.
        reference: The reference; None if no metric needs one.
        extractor: The feature network.
        metrics: The metric of each value, by the name of the value (see `evaluations.metrics.choose`).
        work: A folder for the features of the samples, shared by all processes. The caller removes it.
        cache: A folder in which the features of the reference are kept.
        process: This process, if several share the work.
        batch_size: Number of images that the extractor is given at once.
        progress: Whether to show progress bars on stderr.

    Returns:
        The scores; None in all processes except the main one.

    Raises:
        ValueError: If the batches cannot be compared, a file is damaged, features are not finite, or no metric can be measured.
    """
    process = process or Process()
    sides = [_Side("samples", samples, work)]
    if reference is not None:
        sides.append(_Side("reference", reference, cache, cached=True))
    probe = _check_sides([side.batch for side in sides], extractor)
    result = Scores()
    asked: dict[str, Metric[Any]] = {}
    for name, metric in metrics.items():
        reason = _reason(metric, [side.batch for side in sides], extractor, probe)
        if reason is None:
            asked[name] = metric
        else:
            result.unavailable[name] = reason
    _check_any(asked, result)
    clock = _Clock(result.seconds)
    for side in reversed(sides):
        side.summaries = dict.fromkeys(metric.summary for metric in asked.values() if side in _sides_of(metric, sides))
        side.extract(extractor, process, batch_size, progress)
        if side.files is not None:
            clock.stop(f"features of {side.title}")
    if not process.main:
        return None
    for side in sides:
        side.summarise()
    clock.stop("moments")
    device = next((parameter.device for parameter in extractor.parameters()), torch.device("cpu"))
    warnings = [*extractor.notes]
    for metric in dict.fromkeys(asked.values()):
        found = [side.summaries[metric.summary] for side in _sides_of(metric, sides)]
        try:
            values = metric.measure(found, device)
        except Unavailable as error:
            result.unavailable |= {name: str(error) for name in asked if asked[name] == metric}
            continue
        count = _count(metric, samples)
        for name, value in values.items():
            if name in asked or name in metric.extras:
                result.values[name], result.counts[name] = value, count
        warnings += metric.warnings(found)
        clock.stop(" and ".join(metric.values))
    _check_any(result.values, result)
    result.warnings = list(dict.fromkeys(warnings))
    return result


class _Side:
    """One of the two batches, with the summaries that the metrics need."""

    def __init__(self, title: str, batch: Batch, folder: Path, cached: bool = False) -> None:
        self.title, self.batch, self.folder, self.cached = title, batch, folder, cached
        self.summaries: dict[Summary[Any], Any] = {}
        self.files: FeatureFiles | None = None

    def extract(self, extractor: Extractor, process: Process, batch_size: int, progress: bool) -> None:
        """Compute features, unless the file has all summaries."""
        images = self.batch.images
        if images is not None and any(summary.stored(self.batch) is None for summary in self.summaries):
            place = self.folder / folder_name(images, extractor)
            with writing_cache(place) if self.cached else contextlib.nullcontext():
                self.files = extract(images, extractor, place, process, batch_size, self.title, progress)

    def summarise(self) -> None:
        """Compute the summaries that the file does not have, in one pass over the features."""
        stored = {summary: summary.stored(self.batch) for summary in self.summaries}
        if self.files is None or self.batch.images is None:
            self.summaries = dict(stored)
            return
        running = {summary: summary.begin(self.batch.images) for summary, found in stored.items() if found is None}
        for start, features in self.files:
            for part in running.values():
                part.update(start, features)
        self.summaries = {**stored, **{summary: part.result() for summary, part in running.items()}}


def _count(metric: Metric[Any], samples: Batch) -> int | None:
    stored = metric.summary.stored(samples)
    if stored is not None:
        return stored.count
    return None if samples.images is None else len(samples.images)


def _sides_of(metric: Metric[Any], sides: Sequence[_Side]) -> Sequence[_Side]:
    return sides if metric.reference else sides[:1]


def _check_any(found: Iterable[str], result: Scores) -> None:
    if not list(found):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.unavailable.items())
        raise ValueError(f"none of the metrics can be measured on these files: {reasons}")


def _check_sides(batches: Sequence[Batch], extractor: Extractor) -> Features | None:
    """Check that batches can be compared with this extractor, and return the features of one image, if there is any."""
    sizes: list[str] = []
    probe: Features | None = None
    for batch in batches:
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
            f"{batches[0].path} has images of {sizes[0]}, {batches[1].path} of {sizes[1]}; scores need images of one size: "
            "make a reference of that size with scripts/make_reference.py"
        )
    for batch in batches:
        for name, statistics in (("pool", batch.pool), ("spatial", batch.spatial)):
            features = getattr(probe, name) if probe is not None else None
            if statistics is not None and features is not None and features.shape[1] != len(statistics.mean):
                raise ValueError(
                    f"the statistics of {name} features in {batch.path} have {len(statistics.mean)} dimensions, but "
                    f"{extractor.id} gives {features.shape[1]}: they were made with another extractor"
                )
    return probe


def _reason(metric: Metric[Any], batches: Sequence[Batch], extractor: Extractor, probe: Features | None) -> str | None:
    """Return why a metric cannot be measured on these files; None if it can."""
    if metric.reference and len(batches) == 1:
        return "it needs a reference"
    for batch in reversed(batches if metric.reference else batches[:1]):
        if metric.summary.stored(batch) is not None:
            continue
        if batch.images is None:
            return f"{batch.path} {metric.summary.absent}"
        if len(batch.images) < metric.minimum:
            return f"{batch.path} holds {len(batch.images)} images; {metric.minimum} are needed"
        if "labels" in metric.needs and (reason := _no_labels(batch, extractor.classes)) is not None:
            return reason
        for need, title in (("spatial", "spatial features"), ("logits", "logits")):
            if need in metric.needs and getattr(probe, need) is None:
                return f"the extractor gives no {title}"
    return None


def _no_labels(batch: Batch, classes: int | None) -> str | None:
    if classes is None:
        return "the extractor does not classify by the labels of samples"
    labels = None if batch.images is None else batch.images.labels()
    if labels is None:
        return f"{batch.path} holds no labels (arr_1)"
    if labels.min() < 0 or labels.max() >= classes:
        return f"{batch.path} has labels outside [0, {classes}): samples of no class"
    return None


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def stop(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = round(now - self.last, 3), now


def table(scores: Scores) -> list[tuple[str, float]]:
    """Return the scores by names that include N, in the order of tables. Values of the user's own metrics come last."""
    order = {name: place for place, name in enumerate(NAMES)}
    names = sorted(scores.values, key=lambda name: order.get(name, len(order)))
    return [(name + size_name(scores.counts[name]), scores.values[name]) for name in names]
