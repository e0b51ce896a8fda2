"""What a denoiser is told in addition to x_t and t: labels, text or small images."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """What a denoiser is told about the samples. Every tensor has one row per sample.

    A model family with other conditions adds tensors in a subclass.

    Args:
        labels: Classes, (N,) int64.
        text: Text embeddings, (N, T, D).
        low_res: Images that an upsampling network enlarges, (N, C, h, w) in [-1, 1].
        null_label: The class that means "no class", if the network was trained with one.
        null_text: Embeddings of the empty (or negative) texts, (N, T, D).

    Raises:
        ValueError: If a field has the wrong type, or fields have different numbers of rows.
    """

    labels: Tensor | None = None
    text: Tensor | None = None
    low_res: Tensor | None = None
    null_label: int | None = None
    null_text: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in self._values().items():
            if value is not None and not isinstance(value, int if name == "null_label" else Tensor):
                raise ValueError(f"{name} of a condition must be a {_kind(name)}, got {type(value).__name__}")
        if self.labels is not None and (self.labels.dtype != torch.int64 or self.labels.dim() != 1):
            raise ValueError(f"labels must be (N,) int64, got {tuple(self.labels.shape)} {self.labels.dtype}")
        if len(set(self._rows().values())) > 1:
            rows = ", ".join(f"{name} {count}" for name, count in self._rows().items())
            raise ValueError(f"a condition has one row per sample in all its fields, got {rows}")

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _rows(self) -> dict[str, int]:
        return {name: len(value) for name, value in self._values().items() if isinstance(value, Tensor)}

    @property
    def kind(self) -> tuple[object, ...]:
        """The fields that are set and the shapes of their rows. Conditions can be joined if these are equal."""
        return tuple(v.shape[1:] if isinstance(v, Tensor) else v for v in self._values().values())

    @staticmethod
    def join(conditions: "Sequence[Condition]") -> "Condition":
        """Concatenate the rows of conditions of the same `kind`."""
        rows = [c._values() for c in conditions]
        joined: dict[str, Any] = {
            name: torch.cat([r[name] for r in rows]) for name, value in rows[0].items() if isinstance(value, Tensor)
        }
        return replace(conditions[0], **joined)

    def null(self) -> "Condition | None":
        """Return the condition without class and text, or None if the network has no such condition. `low_res` is kept."""
        if self.labels is not None and self.null_label is not None:
            return replace(self, labels=torch.full_like(self.labels, self.null_label))
        if self.text is not None and self.null_text is not None:
            return replace(self, text=self.null_text)
        return None


def check_condition(condition: object, count: int) -> None:
    """Check that a condition is a `Condition` (or None) with one row per sample.

    Args:
        condition: The value to check.
        count: Number of samples.

    Raises:
        ValueError: If the type or the number of rows is wrong.
    """
    if condition is None:
        return
    if not isinstance(condition, Condition):
        raise ValueError(f"condition must be a Condition, such as Condition(labels=y), or None, got {type(condition).__name__}")
    other = {name: rows for name, rows in condition._rows().items() if rows != count}
    if other:
        name, rows = next(iter(other.items()))
        raise ValueError(f"the condition has {rows} rows ({name}), but there are {count} images")


def _kind(name: str) -> str:
    return "whole number" if name == "null_label" else "tensor"
