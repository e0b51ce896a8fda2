"""Randomness of sampling: what sample i is made from depends on (seed, i, step) only.

Not on batch size, order, number of processes or device: NumPy's Philox on the CPU, keyed by (seed, i), its counter set by
the step and by what the numbers are for.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sag.data.labels import Labels

_INITIAL, _STEP, _MASK, _LABEL = range(4)  # what a stream is for; part of the counter, so never renumber


def check_word(name: str, value: int, bits: int = 64) -> None:
    """Check that a number is one of those that a random generator tells apart.

    Args:
        name: what the number is called in the message.
        value: the number.
        bits: its largest size.

    Raises:
        ValueError: it is not a whole number in [0, 2**bits).
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
    """The noise of some samples. All methods return float32 on `device`.

    Args:
        seed: in [0, 2**64).
        indices: which samples, each in [0, 2**64).
        shape: (C, H, W) of one.
        device: where the noise goes.

    Raises:
        ValueError: the seed or an index is not a whole number, or out of range.
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
        """x_T: (N, C, H, W) standard normal, whatever the number of steps."""
        return self._normal(_INITIAL, 0, self.shape)

    def step(self, t: int) -> Tensor:
        """The noise added at index t of the respaced schedule: (N, C, H, W) standard normal."""
        return self._normal(_STEP, t, self.shape)

    def mask(self, t: int, size: tuple[int, int]) -> Tensor:
        """Numbers for a random mask at index t: (N, h, w) standard normal."""
        return self._normal(_MASK, t, size)


def sample_labels(labels: Labels, seed: int, indices: Sequence[int], num_classes: int) -> list[int] | None:
    """The labels of samples `indices`, each in [0, num_classes), or None for "none".

    Args:
        labels: see `Labels`.
        seed: in [0, 2**64).
        indices: which samples, each in [0, 2**64).
        num_classes: how many classes the model has.

    Raises:
        ValueError: an unknown word, an empty list, a label out of range, or a seed or index as in `SampleNoise`.
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
