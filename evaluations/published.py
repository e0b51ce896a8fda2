"""Numbers of a paper, and whether ours can be put beside them."""

from dataclasses import dataclass

from evaluations.batches import Batch


@dataclass(frozen=True)
class Published:
    """What somebody published of a sample batch.

    Args:
        source: Who, where.
        extractor: The id of the feature network that they used.
        num_samples: How many samples they scored.
        values: By the names of the metrics, without N.
        tolerance: By how much a correct evaluation may differ, for the values that have one.
        any_n: Whether to compare at another number of samples too.
    """

    source: str
    extractor: str
    num_samples: int
    values: dict[str, float]
    tolerance: dict[str, float] | None = None
    any_n: bool = False

    def check(self, samples: Batch, extractor: str) -> None:
        """Check that samples can be put beside these numbers.

        Args:
            samples: What is to be compared.
            extractor: The id of the extractor that scores them.

        Raises:
            ValueError: Another extractor, or another number of samples.
        """
        if self.extractor != extractor:
            raise ValueError(f"{self.source} used {self.extractor}; the extractor here is {extractor}")
        if samples.count != self.num_samples and not self.any_n:
            raise ValueError(
                f"{self.source} is about {self.num_samples} samples, {samples.path} holds {samples.count}: "
                "FID depends on their number; published.any_n=true compares all the same"
            )

    def within(self, name: str, value: float) -> bool | None:
        """Return whether a value is as near to the published one as it must be; None where there is no tolerance."""
        tolerance = (self.tolerance or {}).get(name)
        if name not in self.values or tolerance is None:
            return None
        return abs(value - self.values[name]) <= tolerance
