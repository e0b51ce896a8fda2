"""What a metric is: what it needs, what it keeps of the features, and its values.

A module in `evaluations/metrics/` that defines a subclass of `Metric` is a metric; no other file mentions it. Its fields are
its settings, which are keys of scripts/evaluate.py too. Modules of metrics import torch and scipy only where they compute, so
that listing the metrics is fast.
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
"""Features of the extractor; "labels" are those of the images, for an extractor that classifies by the same labels."""
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Unavailable(ValueError):
    """A metric cannot be had from these features; the message says why. The other metrics are measured all the same."""


class Running(Protocol[T_co]):
    """A summary in the making."""

    def update(self, start: int, features: Mapping[str, NDArray[np.float32]]) -> None:
        """Add the features (n, D), by name, of images start to start + n - 1."""

    def result(self) -> T_co:
        """The summary, once all images have been added."""


class Summary(ABC, Generic[T]):
    """What a metric keeps of the features of one batch. Subclasses are frozen dataclasses: metrics share equal summaries."""

    @abstractmethod
    def begin(self, images: ImageSource) -> Running[T]:
        """Start the summary of a batch."""

    def stored(self, batch: Batch) -> Statistics | None:
        """The summary, if the file holds it; its images are then not needed."""
        return None

    @property
    def absent(self) -> str:
        """What is wrong with a file that has neither images nor this summary."""
        return "holds statistics only, no images (arr_0)"


@dataclass(frozen=True)
class MomentsOf(Summary["Statistics"]):
    """Mean and covariance of pool or spatial features, which need the same memory for any number of images."""

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
    """All features of one kind as a float32 tensor (N, D) on the CPU: 8 kB for each image with Inception's pool features."""

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
        values: The names of the values, and what a column of a table calls them.
        extras: Names of further values, which nobody asks for by name: a spread, say.
        needs: What it is made of.
        reference: Whether it compares the samples with a reference.
        default: Whether it is measured if nobody says which metrics.
        column: Whether it is measured for the rows of tables.
        place: Where it stands among the others; metrics of one place are in the order of their modules' names.
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
        """How many images each side must have."""
        return 2

    @property
    @abstractmethod
    def summary(self) -> Summary[T]:
        """What is kept of each side."""

    @abstractmethod
    def measure(self, sides: Sequence[T], device: torch.device) -> Mapping[str, float]:
        """The values.

        Args:
            sides: The summary of the samples and, for a metric with a reference, that of the reference.
            device: Where to compute what takes long.

        Returns:
            The values and extras by name.

        Raises:
            Unavailable: These features have no such value.
        """

    def warnings(self, sides: Sequence[T]) -> Sequence[str]:
        """What a reader of the values must know of them, a sentence each."""
        return ()


def check_count(name: str, value: object, least: int = 1, also: str = "") -> None:
    """Check a setting that counts something.

    Args:
        name: The setting.
        value: Its value.
        least: The smallest one that makes sense.
        also: What else the setting takes, for the message.

    Raises:
        ValueError: It is no whole number, or a smaller one.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number{also}, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}{also}, got {value}")
