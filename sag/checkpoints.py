"""Weights: found on disk, bundled with the package, or downloaded once; never unpickled beyond plain tensors."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sag.models import Classifier, UNet
from sag.storage import fetch

BUNDLED = Path(__file__).parent / "weights"


class CheckpointMismatch(ValueError):
    """The entries of a file are not those of the network. `shapes`: what the file holds, by name."""

    def __init__(self, message: str, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(message)
        self.shapes = shapes


def load_checkpoint(source: str) -> dict[str, Tensor]:
    """Read a state dict, on the CPU, in the dtype it was stored in.

    source: the name of a bundled model ("fashion32"), a path, an http(s) address, or a gs:// or az:// address, which
    blobfile reads with its credentials; .safetensors, or a file of torch.save. Remote files are downloaded once.

    Raises:
        FileNotFoundError: no such file.
        OSError: a download that failed.
        ValueError: a damaged file, an optimizer's file, or anything but names and tensors.
    """
    path = _locate(source)
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {source} is not a checkpoint, or holds more than plain tensors: it was not loaded"
        ) from error
    except (RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"checkpoint {source} is truncated or not a checkpoint: {_first_line(error)}") from error
    if isinstance(state, Mapping) and {"state", "param_groups"} <= set(state):
        raise ValueError(
            f"checkpoint {source} is the state of an optimizer; give the model*.pt or ema_*.pt file saved beside it"
        )
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        held = ", ".join(map(str, list(state)[:5])) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"checkpoint {source} is not a state dict of names and tensors; it holds: {held}")
    return dict(state)


def load_weights(network: nn.Module, source: str) -> None:
    """Give `network` (which may be on the meta device) the weights of `source`, as float32.

    Raises:
        CheckpointMismatch: names or shapes differ; says which.
        As `load_checkpoint`.
    """
    state = load_checkpoint(source)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        differences = {
            "missing": [name for name in expected if name not in found],
            "unexpected": [name for name in found if name not in expected],
            "of another shape": [
                f"{name} {found[name]} instead of {expected[name]}"
                for name in expected
                if name in found and found[name] != expected[name]
            ],
        }
        parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in differences.items() if names]
        raise CheckpointMismatch(f"checkpoint {source} does not fit the network: entries {', '.join(parts)}", found)
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)


def load_network(network: UNet | Classifier, source: str) -> None:
    """As `load_weights`; the network is then in float32, frozen, in eval mode."""
    load_weights(network, source)
    network.set_precision(torch.float32)
    network.eval().requires_grad_(False)


def _locate(source: str) -> Path:
    if "://" in source:
        return fetch(source)
    bundled = BUNDLED / f"{source}.safetensors"
    path = bundled if bundled.exists() else Path(source)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in BUNDLED.glob("*.safetensors")))
        raise FileNotFoundError(f"no checkpoint at {source!r}; expected a file, an address, or a bundled model ({names})")
    return path


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
