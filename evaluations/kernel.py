"""Kernel Inception Distance (Binkowski et al., arXiv:1801.01401)."""

import numpy as np
from numpy.typing import NDArray

SEED = 2020  # torch-fidelity's, so that the same subsets are drawn


def kernel_distance(
    samples: NDArray[np.float32], reference: NDArray[np.float32], subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of the unbiased squared MMD with kernel (x.y / D + 1)^3.

    samples, reference: features (N, D). Subsets are no larger than the smaller of the two.
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
    return (x @ y.T / x.shape[1] + 1) ** 3
