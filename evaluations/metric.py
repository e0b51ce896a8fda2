"""The base class of metrics: what a metric needs, what it keeps of the features, and its values.

A metric is a module in `evaluations/metrics/` that defines a subclass of `Metric`; no other file mentions it. Its fields are
its settings, which are also keys of scripts/evaluate.py. Modules of metrics import torch and scipy only in the functions that
compute, so that listing the metrics is fast.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Protocol, TypeVar

from typing_extensions import override

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from evaluations.batches import Batch
    from evaluations.frechet import Statistics
    from sag.data import ImageSource

Need = Literal["pool", "spatial", "logits", "labels"]
"""Features of the extractor, or "labels": the labels of the images, for an extractor with the same classes."""
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Unavailable(ValueError):
    """A metric cannot be computed from these features. The message says why; the other metrics are still measured."""


class Running(Protocol[T_co]):
    """A summary that is being computed."""

    def update(self, start: int, features: Mapping[str, NDArray[np.float32]]) -> None:
        """Add the features of n consecutive images.

        Args:
            start: Index of the first image.
            features: Features by name, (n, D) each.
        """

    def result(self) -> T_co:
        """Return the summary, after all images were added."""


class Summary(ABC, Generic[T]):
    """What a metric keeps of the features of one batch.

    Subclasses are frozen dataclasses, so that metrics can share equal summaries.
    """

    @abstractmethod
    def begin(self, images: ImageSource) -> Running[T]:
        """Start the summary of a batch."""

    def stored(self, batch: Batch) -> Statistics | None:
        """Return the summary if the file has it, so that images are not needed; otherwise None."""
        return None

    @property
    def absent(self) -> str:
        """What is wrong with a file that has neither images nor this summary, for messages."""
        return "holds statistics only, no images (arr_0)"


@dataclass(frozen=True)
class MomentsOf(Summary["Statistics"]):
    """Mean and covariance of features. They need the same memory for any number of images.

    Args:
        feature: "pool" or "spatial".
    """

    feature: Literal["pool", "spatial"]

    @override
    def begin(self, images: ImageSource) -> Running[Statistics]:
        return _RunningMoments(self.feature)

    @override
    def stored(self, batch: Batch) -> Statistics | None:
        found: Statistics | None = getattr(batch, self.feature)
        return found

    @property
    @override
    def absent(self) -> str:
        suffix = {"pool": "", "spatial": "_s"}[self.feature]
        return f"holds no {self.feature} statistics (mu{suffix}, sigma{suffix})"


class _RunningMoments:
    def __init__(self, feature: str) -> None:
        from evaluations.frechet import Moments

        self.feature, self.moments = feature, Moments()

    def update(self, start: int, features: Mapping[str, NDArray[np.float32]]) -> None:
        self.moments.update(features[self.feature])

    def result(self) -> Statistics:
        return self.moments.statistics()


@dataclass(frozen=True)
class Rows(Summary["torch.Tensor"]):
    """All features of one kind as a float32 tensor (N, D) on the CPU. Inception's pool features need 8 kB per image.

    Args:
        feature: "pool", "spatial" or "logits".
    """

    feature: Literal["pool", "spatial", "logits"] = "pool"

    @override
    def begin(self, images: ImageSource) -> Running[torch.Tensor]:
        return _RunningRows(self.feature, len(images))


class _RunningRows:
    def __init__(self, feature: str, count: int) -> None:
        self.feature, self.count = feature, count
        self.rows: torch.Tensor | None = None

    def update(self, start: int, features: Mapping[str, NDArray[np.float32]]) -> None:
        import torch

        found = torch.from_numpy(features[self.feature])
        if self.rows is None:
            self.rows = torch.empty(self.count, found.shape[1])
        self.rows[start : start + len(found)] = found

    def result(self) -> torch.Tensor:
        assert self.rows is not None
        return self.rows


@dataclass(frozen=True)
class Metric(ABC, Generic[T]):
    """One or several values that are measured together. Subclasses are frozen dataclasses; their fields are the settings.

    Attributes:
        values: Names of the values, with their titles in tables.
        extras: Names of further values that cannot be requested by name, such as a standard deviation.
        needs: What the metric is computed from.
        reference: Whether samples are compared with a reference.
        default: Whether the metric is measured by default.
        column: Whether the metric is measured for the rows of tables.
        place: Position among the metrics. Metrics of the same place are ordered by the names of their modules.
    """

    values: ClassVar[Mapping[str, str]]
    extras: ClassVar[Sequence[str]] = ()
    needs: ClassVar[frozenset[Need]]
    reference: ClassVar[bool] = True
    default: ClassVar[bool] = False
    column: ClassVar[bool] = False
    place: ClassVar[int] = 100

    @property
    def minimum(self) -> int:
        """The smallest number of images on each side."""
        return 2

    @property
    @abstractmethod
    def summary(self) -> Summary[T]:
        """What is kept of each side."""

    @abstractmethod
    def measure(self, sides: Sequence[T], device: torch.device) -> Mapping[str, float]:
        """Compute the values.

        Args:
            sides: The summary of the samples and, for a metric with a reference, the summary of the reference.
            device: The device for long computations.

        Returns:
            The values and extras, by name.

        Raises:
            Unavailable: If the features have no such value.
        """

    def warnings(self, sides: Sequence[T]) -> Sequence[str]:
        """Return warnings about the values, one sentence each."""
        return ()


def check_count(name: str, value: object, least: int = 1, also: str = "") -> None:
    """Check a setting that is a count.

    Args:
        name: Name of the setting.
        value: Its value.
        least: The smallest valid value.
        also: Other valid values, for the message.

    Raises:
        ValueError: If the value is not a whole number, or is smaller than `least`.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number{also}, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}{also}, got {value}")
