"""The random numbers of sampling. Those of sample i depend only on (seed, i, step).

They do not depend on batch size, order, number of processes or device. They come from NumPy's Philox on the CPU, with (seed, i)
as key, and the step and the purpose in the counter.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sag.data.labels import Labels

_INITIAL, _STEP, _MASK, _LABEL = range(4)  # purposes of random numbers; they are part of the counter, so never renumber them


def check_word(name: str, value: int, bits: int = 64) -> None:
    """Check that a number fits in a word of a random generator's key.

    Args:
        name: Name of the number in messages.
        value: The number.
        bits: Size of the word.

    Raises:
        ValueError: If it is not a whole number in [0, 2**bits).
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number in [0, 2**{bits}), got {value!r}")
    if not 0 <= value < 2**bits:
        raise ValueError(f"{name} must be in [0, 2**{bits}), got {value}")


def _check(seed: int, indices: Sequence[int]) -> None:
    check_word("seed", seed)
    for index in indices:
        check_word("sample index", index)


def _generator(seed: int, index: int, purpose: int, step: int = 0) -> np.random.Generator:
    key = np.array([seed, index], dtype=np.uint64)  # a list with a number of 2**63 or more would become float64
    return np.random.Generator(np.random.Philox(key=key, counter=[0, step, purpose, 0]))


class SampleNoise:
    """The random numbers of N samples. All methods return standard normal numbers, float32 on `device`.

    Args:
        seed: The seed, in [0, 2**64).
        indices: Indices of the samples, each in [0, 2**64).
        shape: (C, H, W) of one sample.
        device: The device of the results.

    Raises:
        ValueError: If the seed or an index is not a whole number or is out of range.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        _check(seed, indices)
        self.seed = seed
        self.indices = list(indices)
        self.shape = shape
        self.device = device

    def _normal(self, purpose: int, step: int, shape: tuple[int, ...]) -> Tensor:
        rows = [_generator(self.seed, i, purpose, step).standard_normal(shape, dtype=np.float32) for i in self.indices]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def initial(self) -> Tensor:
        """Return x_T, (N, C, H, W). It does not depend on the number of steps."""
        return self._normal(_INITIAL, 0, self.shape)

    def step(self, t: int) -> Tensor:
        """Return the noise that step t of the respaced schedule adds, (N, C, H, W)."""
        return self._normal(_STEP, t, self.shape)

    def mask(self, t: int, size: tuple[int, int]) -> Tensor:
        """Return numbers for a random mask at step t, (N, h, w)."""
        return self._normal(_MASK, t, size)


def sample_labels(labels: Labels, seed: int, indices: Sequence[int], num_classes: int) -> list[int] | None:
    """Return the labels of samples.

    Args:
        labels: See `Labels`.
        seed: The seed, in [0, 2**64).
        indices: Indices of the samples, each in [0, 2**64).
        num_classes: Number of classes of the model.

    Returns:
        One label in [0, num_classes) per sample, or None for "none".

    Raises:
        ValueError: If `labels` is an unknown word or an empty list, a label is out of range, or `SampleNoise` rejects the seed
            or an index.
    """
    _check(seed, indices)
    if labels == "none":
        return None
    if labels == "random":
        return [int(_generator(seed, i, _LABEL).integers(num_classes)) for i in indices]
    if labels == "balanced":
        return [i % num_classes for i in indices]
    given = [labels] if isinstance(labels, int) else labels
    if isinstance(given, str) or not given or not all(isinstance(label, int) for label in given):
        raise ValueError(f"labels must be random, balanced, none, or one or more whole numbers, got {labels!r}")
    if not all(0 <= label < num_classes for label in given):
        raise ValueError(f"labels must be in [0, {num_classes}) for this model, got {list(given)}")
    return [given[i % len(given)] for i in indices]
