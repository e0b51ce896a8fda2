"""Loading weights: finding the file (local, bundled or remote), and finding the weights in what a trainer wrote."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sag.storage import fetch, without_digest
from sag.tensor_files import read_tensors

logger = logging.getLogger(__name__)
BUNDLED = Path(__file__).parent / "weights"
PREFIXES = (
    *("module", "_orig_mod", "_fsdp_wrapped_module"),  # PyTorch's own: DDP, compile, FSDP
    *("model", "ema", "ema_model", "model_ema", "online_model", "network", "net", "unet", "denoiser", "diffusion_model"),
)
"""Prefixes that trainers put before the names of all weights, with a dot after them."""
COUNTERS = ("step", "steps", "global_step", "iteration", "iter", "epoch", "version", "initted", "decay", "n_averaged",
            "num_updates", "num_batches_tracked")  # fmt: skip
"""Names of single numbers that trainers save among the weights. No network of this project has them."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_RAW = ("state_dict", "model_state_dict", "model", "params", "net", "network", "module", "weights")
_EMA = re.compile(r"(^|_)ema(_|\d|$)|shadow_params")
_DEPTH = 5  # mappings that are nested more deeply are not searched

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    Attributes:
        state: Tensors by name, on the CPU, in their stored dtype.
        notes: What was chosen, removed or left out to find them; empty if the file has nothing else.
    """

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


class CheckpointMismatch(ValueError):
    """The weights in a file do not fit the network.

    Attributes:
        shapes: Shapes of the weights in the file, by name, without prefixes.
    """

    def __init__(self, message: str, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(message)
        self.shapes = shapes


def read_checkpoint(source: str, shapes: Shapes | None = None, former: Mapping[str, str] | None = None) -> Checkpoint:
    """Read weights from a file of torch.save or safetensors.

    Wrappers, prefixes and counters of common trainers are removed. If there are several sets of weights, those that fit are
    used, and averaged weights (EMA) before others. Ambiguous files are errors.

    Args:
        source: The name of a bundled model ("fashion32"), a path, an http(s) address, or a gs:// or az:// address, for which
            blobfile finds the credentials. Remote files are downloaded once.
        shapes: Shapes of the network's weights, by name; None if they are unknown.
        former: Parts of the names in earlier versions of such files, and what they are called now.

    Returns:
        The weights.

    Raises:
        OSError: If the file does not exist, cannot be read, or cannot be downloaded.
        CheckpointMismatch: If names or shapes differ from `shapes`. The message lists the differences.
        ValueError: If the file is damaged, belongs to an optimizer, or has several sets of weights, or if weights are not
            finite floating-point numbers.
    """
    path = _locate(source)
    name = f"checkpoint {without_digest(source)}" + (f" (in {path})" if "://" in source else "")
    content = read_tensors(path, name)
    if isinstance(content, Mapping) and {"state", "param_groups"} <= set(content):
        raise ValueError(f"{name} is the state of an optimizer; give the model*.pt or ema_*.pt file of the same folder")
    found = [_reduce(_renamed(weights, former or {}), shapes) for weights in _sets(content, name)]
    if not found:
        raise ValueError(f"{name} is not a state dict of names and tensors; it holds: {_holds(content)}")
    chosen, others = _choose(found, shapes, name)
    if shapes is not None and chosen.shapes != shapes:
        _refuse_mixture(chosen, name)
        raise CheckpointMismatch(_mismatch(chosen.shapes, shapes, name), chosen.shapes)
    if shapes is None:
        _refuse_mixture(chosen, name)
    _check_values(chosen.tensors, name)
    return Checkpoint(chosen.tensors, chosen.notes(others))


def load_checkpoint(source: str) -> dict[str, Tensor]:
    """Read weights without notes.

    Args:
        source: See `read_checkpoint`.

    Returns:
        Tensors by name (see `Checkpoint.state`).

    Raises:
        OSError: See `read_checkpoint`.
        ValueError: See `read_checkpoint`.
    """
    return read_checkpoint(source).state


def load_weights(network: nn.Module, source: str) -> tuple[str, ...]:
    """Load weights into a network, as float32.

    Args:
        network: The network. It may be on the meta device.
        source: See `read_checkpoint`.

    Returns:
        The notes of `Checkpoint`.

    Raises:
        OSError: See `read_checkpoint`.
        CheckpointMismatch: See `read_checkpoint`.
        ValueError: See `read_checkpoint`.
    """
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    checkpoint = read_checkpoint(source, shapes, getattr(network, "former_names", None))
    network.load_state_dict({name: value.float() for name, value in checkpoint.state.items()}, assign=True)
    return checkpoint.notes


def load_network(network: Any, source: str) -> tuple[str, ...]:
    """Load weights into a network, and leave it in float32, frozen and in eval mode.

    Args:
        network: A module with `set_precision`, such as `UNet`. It may be on the meta device.
        source: See `read_checkpoint`.

    Returns:
        The notes of `Checkpoint`.

    Raises:
        OSError: See `read_checkpoint`.
        CheckpointMismatch: See `read_checkpoint`.
        ValueError: See `read_checkpoint`.
    """
    notes = load_weights(network, source)
    network.set_precision(torch.float32)
    network.eval().requires_grad_(False)
    return notes


def log_notes(source: str, notes: Sequence[str]) -> None:
    """Log how weights were found in a file that holds more than weights.

    Args:
        source: See `read_checkpoint`.
        notes: The notes of `Checkpoint`; if there are none, nothing is logged.
    """
    if notes:
        logger.info("weights of %s: %s", without_digest(source), "; ".join(notes))


def _locate(source: str) -> Path:
    if not isinstance(source, str) or not source:
        raise ValueError(f"checkpoint must be a path, an address or the name of a bundled model, got {source!r}")
    if "://" in source:
        return fetch(source)
    bundled = {file.stem: file for file in sorted(BUNDLED.glob("*.safetensors"))}
    path = bundled.get(source, Path(source))
    try:
        if path.is_file():
            return path
        if path.is_dir():
            inside = [file.name for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
            raise FileNotFoundError(f"checkpoint {source} is a folder; give a file in it ({_some(inside) or 'it has none'})")
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"checkpoint {source} cannot be read ({error.strerror})") from error
    names = ", ".join(bundled)
    raise FileNotFoundError(f"no checkpoint at {source!r}; expected a file, an address, or a bundled model ({names})")


def _holds(content: Any) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    return _some([str(key) for key in content]) or "nothing"


@dataclass(frozen=True)
class _Weights:
    """One set of weights in a file.

    Attributes:
        path: The keys that lead to it.
        tensors: Tensors by name.
        removed: Prefixes that were removed, outermost first.
        left_out: Names of the entries that were left out.
        compiled: Whether _orig_mod. was removed from the middle of names.
        renamed: Whether names were those of an earlier version.
    """

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    removed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    compiled: bool = False
    renamed: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self.tensors.items()}

    @property
    def name(self) -> str:
        return f"entry {'.'.join(self.path)!r}" if self.path else "the entries at the top"

    @property
    def rank(self) -> int:
        """The priority of this set, lowest first: averages, then usual names of the model, then others."""
        if any(_EMA.search(key.lower()) for key in self.path):
            return 0
        return 1 if not self.path or self.path[-1] in _RAW else 2

    def notes(self, others: Sequence["_Weights"]) -> tuple[str, ...]:
        found = []
        if self.path or others:
            kind = "EMA weights" if self.rank == 0 else "weights"
            found.append(f"{kind} of {self.name}" + (f", not of {_some([other.name for other in others])}" if others else ""))
        if self.rank > 0 and any(other.rank == 0 for other in others):
            found.append("the EMA weights do not fit the network")
        if self.removed:
            found.append(f"prefix {'.'.join(self.removed)}. removed")
        if self.compiled:
            found.append("_orig_mod. removed from the middle of names")
        if self.renamed:
            found.append("names of an earlier version changed to the present ones")
        if self.left_out:
            found.append(f"left out: {_some(self.left_out)}")
        return tuple(found)


def _sets(content: Any, name: str) -> list[_Weights]:
    """Find all sets of weights in the content of a file."""
    named, unnamed = [], []
    for path, node in _nodes(content, (), set()):
        if isinstance(node, Mapping):
            tensors = {key: value.detach() for key, value in node.items() if isinstance(value, Tensor)}
            if any(value.dim() for value in tensors.values()) and all(isinstance(key, str) for key in tensors):
                left_out = [str(key) for key, value in node.items() if not isinstance(value, Tensor)]
                named.append(_Weights(path, tensors, left_out=tuple(left_out)))
        elif _EMA.search(".".join(path).lower()):
            unnamed.append((path, node))
    named = [found for found in named if any(v.is_floating_point() for v in found.tensors.values())] or named
    return named + [_with_names(path, tensors, named, name) for path, tensors in unnamed]


def _nodes(content: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the mappings and lists of tensors in the content of a file, except those of optimizers.

    `seen` has the ids of visited mappings, since there may be cycles.
    """
    if isinstance(content, Mapping):
        if id(content) in seen or len(path) > _DEPTH or {"state", "param_groups"} <= set(content):
            return
        seen.add(id(content))
        yield path, content
        for key, value in content.items():
            yield from _nodes(value, (*path, str(key)), seen)
    elif isinstance(content, list | tuple) and content and all(isinstance(v, Tensor) and v.dim() for v in content):
        yield path, content


def _with_names(path: tuple[str, ...], tensors: Sequence[Tensor], named: Sequence[_Weights], name: str) -> _Weights:
    """Name averages that are stored as a list. They are in the order of the parameters, and so are the weights in the file."""
    alike = [w for w in named if [v.shape for v in w.tensors.values()] == [v.shape for v in tensors]]
    if len(alike) != 1:
        raise ValueError(
            f"{name} holds EMA weights without names ({'.'.join(path)}, {len(tensors)} tensors), and no state dict that they "
            "match one to one; save the state dict of the averaged network as a file of its own"
        )
    values = (tensor.detach() for tensor in tensors)
    return replace(alike[0], path=path, tensors=dict(zip(alike[0].tensors, values, strict=True)))


def _renamed(weights: _Weights, former: Mapping[str, str]) -> _Weights:
    """Change names of an earlier version to the present ones."""
    present = {name: name for name in weights.tensors}
    for before, now in former.items():
        present = {name: changed.replace(before, now) for name, changed in present.items()}
    tensors = {present[name]: value for name, value in weights.tensors.items()}
    if len(tensors) < len(weights.tensors) or tensors.keys() == weights.tensors.keys():
        return weights
    return replace(weights, tensors=tensors, renamed=True)


def _reduce(weights: _Weights, shapes: Shapes | None) -> _Weights:
    """Remove counters and prefixes: any prefix if the rest then fits the network, otherwise only known ones."""
    if weights.shapes == shapes:
        return weights
    counters = [n for n, value in weights.tensors.items() if value.dim() == 0 and n.rsplit(".", 1)[-1] in COUNTERS]
    kept = {n: value for n, value in weights.tensors.items() if n not in counters}
    plain = replace(weights, tensors=kept, left_out=(*weights.left_out, *counters))
    if shapes is not None:
        fitting = _without_compile(_without_prefixes(plain, shapes, None))
        if fitting.shapes == shapes:
            return fitting
    return _without_compile(_without_prefixes(plain, shapes, PREFIXES))


def _without_compile(weights: _Weights) -> _Weights:
    """Remove what torch.compile inserts into names if only parts of a network were compiled."""
    tensors = {name.replace("._orig_mod.", "."): value for name, value in weights.tensors.items()}
    if len(tensors) < len(weights.tensors) or tensors.keys() == weights.tensors.keys():
        return weights
    return replace(weights, tensors=tensors, compiled=True)


def _without_prefixes(weights: _Weights, shapes: Shapes | None, known: Sequence[str] | None) -> _Weights:
    while weights.tensors and weights.shapes != shapes:
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in weights.tensors.items():
            first, _, rest = name.partition(".") if "." in name else ("", "", name)
            groups.setdefault(first, {})[rest] = value
        prefix = _shared(groups)
        if prefix is None or (known is not None and prefix not in known):
            break
        path = (*weights.path, prefix) if len(groups) > 1 else weights.path
        weights = replace(weights, path=path, tensors=groups[prefix], removed=(*weights.removed, prefix))
    return weights


def _shared(groups: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """Return the prefix of all names. If all come twice, averaged and not averaged, return the prefix of the averages."""
    if len(groups) == 1:
        return next(iter(groups)) or None
    averages = [prefix for prefix in groups if _EMA.search(prefix)]
    if len(groups) == 2 and len(averages) == 1:
        a, b = ({name: value.shape for name, value in group.items()} for group in groups.values())
        return averages[0] if a == b else None
    return None


def _choose(found: list[_Weights], shapes: Shapes | None, name: str) -> tuple[_Weights, list[_Weights]]:
    """Return the set of weights to use, and the others."""
    fitting = [weights for weights in found if weights.shapes == shapes] or found
    best = min(weights.rank for weights in fitting)
    candidates = [weights for weights in fitting if weights.rank == best]
    if len(candidates) > 1:
        raise ValueError(
            f"{name} holds several sets of weights ({_some([w.name for w in candidates])}); save the one to use as a file of "
            "its own"
        )
    return candidates[0], [weights for weights in found if weights is not candidates[0]]


def _refuse_mixture(weights: _Weights, name: str) -> None:
    for prefix in PREFIXES:
        having = [n for n in weights.tensors if n.startswith(f"{prefix}.")]
        rest = [n for n in weights.tensors if not n.startswith(f"{prefix}.")]
        if having and rest:
            odd = having[0] if len(having) < len(rest) else rest[0]
            verb = "has" if odd is having[0] else "lacks"
            raise ValueError(
                f"{name} has the prefix {prefix}. on {len(having)} of its {len(weights.tensors)} names only: {odd} {verb} it; "
                "save the weights of one network as a file of their own"
            )


def _mismatch(found: Shapes, expected: Shapes, name: str) -> str:
    differences = {
        "missing": [n for n in expected if n not in found],
        "unexpected": [n for n in found if n not in expected],
        "of another shape": [
            f"{n} {found[n]} instead of {expected[n]}" for n in expected if n in found and found[n] != expected[n]
        ],
    }
    parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in differences.items() if names]
    return f"{name} does not fit the network: entries {', '.join(parts)}"


def _check_values(tensors: Mapping[str, Tensor], name: str) -> None:
    for entry, value in tensors.items():
        if value.is_meta or value.layout != torch.strided or value.dtype not in DTYPES:
            kind = "no values" if value.is_meta else f"{str(value.dtype).removeprefix('torch.')} values"
            kind += "" if value.layout == torch.strided else f" in layout {str(value.layout).removeprefix('torch.')}"
            raise ValueError(
                f"{name}: entry {entry} holds {kind}; weights must be dense floating-point numbers of 16 bits or more"
            )
        if value.numel() and not torch.stack(value.float().aminmax()).isfinite().all():
            raise ValueError(f"{name}: entry {entry} holds values that are not finite in float32; take an earlier checkpoint")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
