"""What a denoiser is told beside x_t and t: labels, text, a small image."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """What a denoiser is told of the samples, one row per sample. A model family that is told more adds tensors in a subclass.

    Args:
        labels: (N,) int64, the classes.
        text: (N, T, D), embeddings of texts.
        low_res: (N, C, h, w) in [-1, 1], the images that an upsampling network enlarges.
        null_label: The class that means "no class", where the network was trained with one.
        null_text: (N, T, D), embeddings of the empty texts, or of the negative ones.

    Raises:
        ValueError: If a field is of the wrong type, or fields have different numbers of rows.
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
        """What is alike in conditions that can be joined: which fields there are, and of what shape."""
        return tuple(v.shape[1:] if isinstance(v, Tensor) else v for v in self._values().values())

    @staticmethod
    def join(conditions: "Sequence[Condition]") -> "Condition":
        """Return one condition with the rows of all of these, which are of one kind."""
        rows = [c._values() for c in conditions]
        joined: dict[str, Any] = {
            name: torch.cat([r[name] for r in rows]) for name, value in rows[0].items() if isinstance(value, Tensor)
        }
        return replace(conditions[0], **joined)

    def null(self) -> "Condition | None":
        """Return the condition of no class and no text, or None if the network knows none. A small image stays."""
        if self.labels is not None and self.null_label is not None:
            return replace(self, labels=torch.full_like(self.labels, self.null_label))
        if self.text is not None and self.null_text is not None:
            return replace(self, text=self.null_text)
        return None


def check_condition(condition: object, count: int) -> None:
    """Raise a ValueError if this is no condition, or one of another number of samples than `count`."""
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
