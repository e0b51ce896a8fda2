"""Files of tensors: told by their content, not by their suffix; never unpickled beyond plain data; damage is an error."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

BLOCK = 1 << 20
_HEADER = 100_000_000  # bytes; no header of safetensors may be longer


def read_tensors(path: Path, name: str) -> Any:
    """Read what torch.save or safetensors wrote, on the CPU, in the dtypes that were stored.

    Args:
        path: the file.
        name: what messages call it.

    Returns:
        The tensors and plain values (numbers, text, lists, mappings) in the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, another kind of file, or holds objects that would have to be unpickled.
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
        with open(path, "rb") as file, warnings.catch_warnings():  # not the path, whose suffix PyTorch would go by
            warnings.simplefilter("ignore")  # about rare kinds of tensors, which are refused later by name
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OSError(f"{name} is truncated or cannot be read ({error.strerror or _reason(error)})") from error
    except Exception as error:  # a parser that is fed with damaged bytes raises nearly anything
        unsafe = re.search(r"nsupported (?:global: )?GLOBAL (\w[\w.]*)", str(error))
        if unsafe:
            raise ValueError(
                f"{name} holds more than plain tensors ({unsafe[1]}), which could run a program of its author: it "
                f'was not loaded; if you trust it, keep its weights only, as in python -c "import torch; '
                f"c = torch.load('{path}', weights_only=False); torch.save(c['state_dict'], 'weights.pt')\""
            ) from error
        raise ValueError(f"{name} is truncated or not a checkpoint: {_reason(error)}") from error


def _other_kind(start: bytes) -> str | None:
    """What a file is that begins like this, where that is certain and no file of tensors begins so."""
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
    """Raise an error unless this is a zip archive of torch.save with the checksums it states: torch.load compares none."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("/data.pkl") for name in names):
            kind = "of NumPy arrays (npz)" if names and all(name.endswith(".npy") for name in names) else "of something else"
            raise ValueError(f"it is an archive {kind if names else 'without content'}")
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError("it is a program of TorchScript; save the state_dict of the network instead")
        for member in archive.infolist():
            if member.CRC != 0:  # torch.save can be told to compute none
                with archive.open(member) as file:
                    while file.read(BLOCK):
                        pass  # the end compares the checksum


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    if text.startswith("Weights only load failed"):  # with advice to load the file without any care; the cause comes last
        cause = re.search(r"WeightsUnpickler error: (.+)", text)
        text = cause[1] if cause else "it does not begin as one"
    return text.splitlines()[0].rstrip(".")[:300]
