"""Reading files of tensors. Content decides their kind, not the suffix. Only plain data is unpickled. Damage is an error."""

import argparse
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

BLOCK = 1 << 20
_HEADER = 100_000_000  # the highest number of bytes of a safetensors header


def read_tensors(path: Path, name: str) -> Any:
    """Read a file of torch.save or safetensors, on the CPU, in the stored dtypes.

    Args:
        path: The file.
        name: Name of the file in messages.

    Returns:
        The tensors and plain values (numbers, text, lists, mappings) in the file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is damaged or of another kind, or has pickled objects.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise OSError(f"{name} cannot be read ({error.strerror})") from error
    other = _other_kind(start)
    if other is not None:
        raise ValueError(f"{name} is truncated or not a checkpoint: it {other}")
    try:
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _HEADER:
            return load_file(path)
        if start.startswith(b"PK"):
            _check_archive(path)
        with open(path, "rb") as file, warnings.catch_warnings():  # with a path, PyTorch would rely on its suffix
            warnings.simplefilter("ignore")  # warnings about rare kinds of tensors, which are refused by name later
            with torch.serialization.safe_globals([argparse.Namespace]):  # plain values by name, as DiT's trainer saves them
                return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OSError(f"{name} is truncated or cannot be read ({error.strerror or _reason(error)})") from error
    except Exception as error:  # damaged bytes make parsers raise almost anything
        unsafe = re.search(r"nsupported (?:global: )?GLOBAL (\w[\w.]*)", str(error))
        if unsafe:
            raise ValueError(
                f"{name} holds more than plain tensors ({unsafe[1]}), which could run any code of its author: it "
                f'was not loaded; if you trust it, extract its weights, as in python -c "import torch; '
                f"c = torch.load('{path}', weights_only=False); torch.save(c['state_dict'], 'weights.pt')\""
            ) from error
        raise ValueError(f"{name} is truncated or not a checkpoint: {_reason(error)}") from error


def _other_kind(start: bytes) -> str | None:
    """Name the kind of a file by its first bytes, if it certainly is not a file of tensors."""
    if not start:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS; git lfs pull fetches the file itself"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page; download the file itself"
    if start.startswith(b"\x93NUMPY"):
        return "is an array of NumPy"
    return None


def _check_archive(path: Path) -> None:
    """Raise an error unless this is a zip archive of torch.save with valid checksums, which torch.load does not compare."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("/data.pkl") for name in names):
            kind = "of NumPy arrays (npz)" if names and all(name.endswith(".npy") for name in names) else "of something else"
            raise ValueError(f"it is an archive {kind if names else 'without content'}")
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError("it is a program of TorchScript; save the state_dict of the network instead")
        for member in archive.infolist():
            if member.CRC != 0:  # torch.save can omit checksums
                with archive.open(member) as file:
                    while file.read(BLOCK):
                        pass  # zipfile compares the checksum at the end


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    if text.startswith("Weights only load failed"):  # it advises to load the file unsafely first, and ends with the cause
        cause = re.search(r"WeightsUnpickler error: (.+)", text)
        text = cause[1] if cause else "it does not begin as one"
    return text.splitlines()[0].rstrip(".")[:300]
