"""Published numbers, and whether scores can be compared with them."""

from dataclasses import dataclass

from evaluations.batches import Batch


@dataclass(frozen=True)
class Published:
    """Published scores.

    Args:
        source: Where they were published.
        extractor: Id of their feature network.
        num_samples: Their number of samples.
        values: Values by name. Names do not include N.
        tolerance: The largest difference of a correct evaluation, for some of the values.
        any_n: Whether to compare with other numbers of samples as well.
    """

    source: str
    extractor: str
    num_samples: int
    values: dict[str, float]
    tolerance: dict[str, float] | None = None
    any_n: bool = False

    def check(self, samples: Batch, extractor: str) -> None:
        """Check that the scores of samples can be compared with these numbers.

        Args:
            samples: The samples.
            extractor: Id of the extractor that scores them.

        Raises:
            ValueError: If the extractor or the number of samples differs.
        """
        if self.extractor != extractor:
            raise ValueError(f"{self.source} used {self.extractor}; the extractor here is {extractor}")
        if samples.count != self.num_samples and not self.any_n:
            raise ValueError(
                f"{self.source} has the scores of {self.num_samples} samples, but {samples.path} holds {samples.count}: "
                "FID depends on their number; published.any_n=true compares them anyway"
            )

    def within(self, name: str, value: float) -> bool | None:
        """Return whether a value is within the tolerance of the published one; None if there is no tolerance."""
        tolerance = (self.tolerance or {}).get(name)
        if name not in self.values or tolerance is None:
            return None
        return abs(value - self.values[name]) <= tolerance
