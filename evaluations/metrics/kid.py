"""The Kernel Inception Distance (Binkowski et al., arXiv:1801.01401)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from evaluations.metric import Metric, Rows, check_count

if TYPE_CHECKING:
    import torch

SEED = 2020  # torch-fidelity's seed, so that the same subsets are drawn


@dataclass(frozen=True)
class KID(Metric["torch.Tensor"]):
    """Squared MMD of pool features with a cubic kernel, unbiased for any number of images.

    Args:
        kid_subsets: Number of random subsets.
        kid_subset_size: Number of images per subset, if there are enough.
    """

    kid_subsets: int = 100
    kid_subset_size: int = 1000

    values: ClassVar = {"kid": "KID"}
    extras = ("kid_std",)
    needs: ClassVar = frozenset({"pool"})
    default = True
    place = 50
    summary = Rows("pool")

    def __post_init__(self) -> None:
        check_count("kid_subsets", self.kid_subsets)
        check_count("kid_subset_size", self.kid_subset_size, 2)

    @override
    def measure(self, sides: Sequence[torch.Tensor], device: torch.device) -> Mapping[str, float]:
        samples, reference = (side.numpy() for side in sides)
        mean, deviation = kernel_distance(samples, reference, self.kid_subsets, self.kid_subset_size)
        return {"kid": mean, "kid_std": deviation}


def kernel_distance(
    samples: NDArray[np.float32], reference: NDArray[np.float32], subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """Compute the unbiased squared MMD with kernel (x.y / D + 1)^3 over random subsets.

    Args:
        samples: Features, (N, D).
        reference: Features, (M, D).
        subsets: Number of random subsets.
        subset_size: Number of images per subset, at most N and M.

    Returns:
        Mean and standard deviation over the subsets.
    """
    size = min(subset_size, len(samples), len(reference))
    generator = np.random.RandomState(SEED)
    values = []
    for _ in range(subsets):
        x = samples[generator.choice(len(samples), size, replace=False)].astype(np.float64)
        y = reference[generator.choice(len(reference), size, replace=False)].astype(np.float64)
        within = sum(k.sum() - np.trace(k) for k in (_kernel(x, x), _kernel(y, y))) / (size * (size - 1))
        values.append(within - 2 * _kernel(x, y).mean())
    return float(np.mean(values)), float(np.std(values))


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel
