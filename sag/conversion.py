"""Conversion of checkpoints to safetensors files, which are small, hold nothing but the weights and run no code when read."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save

from sag.checkpoints import log_notes, read_checkpoint
from sag.devices import PRECISIONS
from sag.storage import atomic, check_new


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        path: The file.
        tensors: How many tensors it has.
        size: Its bytes.
        dtype: The precision of its numbers.
    """

    path: Path
    tensors: int
    size: int
    dtype: str


def convert_checkpoint(checkpoint: str, out: str | Path, dtype: str = "float16") -> Converted:
    """Write the weights of a checkpoint as a new safetensors file.

    Example:
        >>> from sag.conversion import convert_checkpoint
        >>> convert_checkpoint("fashion32", "model.safetensors", "bfloat16").tensors
        273

    Args:
        checkpoint: The checkpoint (see `sag.checkpoints.read_checkpoint`).
        out: The file.
        dtype: "float32", "bfloat16" or "float16". Networks load all of them as float32.

    Returns:
        What was written.

    Raises:
        ValueError: If the dtype is unknown or too narrow for a value, `out` does not end in .safetensors or exists, or the
            checkpoint cannot be used.
        OSError: If a file cannot be read or written.
    """
    path = Path(out)
    if dtype not in list(PRECISIONS):
        raise ValueError(f"dtype must be one of {', '.join(PRECISIONS)}, got {dtype!r}")
    check_new(path, ".safetensors")
    found = read_checkpoint(checkpoint)
    log_notes(checkpoint, found.notes)
    state = {name: value.to(PRECISIONS[dtype]).contiguous() for name, value in found.state.items()}
    beyond = [name for name, value in state.items() if not value.isfinite().all()]
    if beyond:
        raise ValueError(f"{', '.join(beyond[:3])} in {checkpoint} holds values that {dtype} cannot; use dtype=float32")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, replace=False) as file:
        file.write(save(state))
    return Converted(path, len(state), path.stat().st_size, dtype)
