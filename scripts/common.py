"""What the scripts share: composing with clear errors, devices and precisions, and loading what a config names."""

import contextlib
import ctypes
import dataclasses
import functools
import os
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import blobfile
import hydra
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sag.build.arguments import read_arguments, read_overrides
from sag.build.checks import check_settings, check_targets
from sag.build.messages import CONFIGS, check_choices, choices, explain, missing, sentence, unknown_choice, unknown_keys
from sag.build.own_model import settle
from sag.checkpoints import CheckpointMismatch, load_network
from sag.devices import PRECISIONS, device_name, pick_device
from sag.distributed import Process
from sag.guidance import Guidance
from sag.models import Classifier, UNet
from sag.records import provenance
from sag.storage import CacheError, Folder

__all__ = ["PRECISIONS", "device_name", "pick_device", "provenance"]  # of sag, for the scripts
ROOT = Path(__file__).parent.parent
USER_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
    OSError,
    FloatingPointError,
    torch.OutOfMemoryError,
    blobfile.Error,
)


def run(
    main: Callable[[DictConfig], float | None],
    config_name: str,
    schema: type,
    failed: Callable[[DictConfig, str], float] | None = None,
) -> None:
    """Compose `config_name` with the command line and call `main`; an error becomes one sentence on stderr and exit code 1.

    With HYDRA_FULL_ERROR=1 in the environment the traceback is shown.

    Args:
        main: the program.
        config_name: of a file in configs/.
        schema: a dataclass of the keys that `main` knows.
        failed: what a program of many points does with one whose values are refused, and why; None ends the program.
    """
    _keep_memory()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # not the line of code that gave it
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them

    def settled(cfg: DictConfig) -> float | None:
        _check_keys(cfg, config_name, schema, HydraConfig.get())
        try:
            notes = _settle(cfg, config_name, HydraConfig.get())
        except USER_ERRORS as error:
            if failed is None:
                raise
            return failed(cfg, sentence(error))
        if Process.current().main:
            for note in notes:
                print(f"note      {note}", flush=True)
        return main(cfg)

    @functools.wraps(main)
    def job(cfg: DictConfig) -> float | None:
        return _report(lambda: settled(cfg), full)

    def start() -> float | None:
        sys.argv[1:] = overrides = read_arguments(sys.argv[1:], schema)
        check_choices(overrides)
        try:
            result: float | None = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            return result
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(explain(error, config_name, schema, overrides)) from error

    _report(start, full)


def composed(config_name: str, overrides: Sequence[str], schema: type) -> DictConfig:
    """What `run` hands to a program, for overrides that come from elsewhere than its command line.

    Args:
        config_name: of a file in configs/.
        overrides: as on the command line of the program.
        schema: a dataclass of its keys.

    Raises:
        ValueError: overrides that cannot be read or do not fit.
    """
    readable = read_overrides(overrides, schema)
    check_choices(readable)
    try:
        cfg = compose(config_name, readable, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, config_name, schema, readable)) from error
    of_hydra = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    _check_keys(cfg, config_name, schema, of_hydra)
    _settle(cfg, config_name, of_hydra)
    return cfg


def _check_keys(cfg: DictConfig, config_name: str, schema: type, of_hydra: Any) -> None:
    """Raise a ValueError for a key that the program does not know, or one that was removed, or an unknown classifier."""
    overrides: Any = OmegaConf.to_container(of_hydra.overrides.task, resolve=False)
    known = [field.name for field in dataclasses.fields(schema)]
    unknown = [str(key) for key in cfg if key not in known]
    if unknown:
        raise ValueError(unknown_keys(unknown, config_name, overrides))
    removed = [key for key in known if key not in list(cfg)]
    if removed:
        raise ValueError(f"~{removed[0]} removes a key that the program needs")
    if cfg.get("classifier") is None and any(override.startswith("classifier=") for override in overrides):
        raise ValueError(unknown_choice("classifier", of_hydra.runtime.choices["classifier"], choices("classifier")))


def _settle(cfg: DictConfig, config_name: str, of_hydra: Any) -> list[str]:
    """Check the values of a composed config and settle its model; returns what a user should know of it."""
    overrides: Any = OmegaConf.to_container(of_hydra.overrides.task, resolve=False)
    names = of_hydra.runtime.choices
    check_settings(cfg)
    if OmegaConf.is_dict(cfg.get("model")) and OmegaConf.is_missing(cfg.model, "flags"):  # what others refer to comes of them
        raise ValueError(missing("model.flags", config_name, names))
    notes = settle(cfg, names, overrides)
    without = sorted(OmegaConf.missing_keys(cfg))
    if without:
        raise ValueError(missing(without[0], config_name, names))
    check_targets(cfg)
    return notes


def _keep_memory() -> None:
    """Have glibc keep freed buffers: handing them back and faulting them in again costs a CPU up to half its time."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no buffer of its own mapping
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: 2 GiB may lie idle


def _report(call: Callable[[], float | None], full: bool) -> float | None:
    try:
        return call()
    except USER_ERRORS as error:
        if full:
            raise
        sys.exit(f"error: {sentence(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last finished batch")


def check_folder(out: Folder, settings: DictConfig, free: Collection[str] = ()) -> None:
    """Refuse a folder that holds results of other settings.

    Args:
        out: The folder; its config.yaml says which settings.
        settings: Those of this run.
        free: Keys that may differ.

    Raises:
        ValueError: other settings, naming the keys that differ, or a config.yaml that no run wrote.
    """
    if "config.yaml" not in out.names():
        return
    there, here = _flat(read_config(out)), _flat(OmegaConf.to_container(settings))
    if not there.keys() & here.keys():
        raise ValueError(f"{out}/config.yaml is there already, and no run wrote it; give another out, or move it away")
    differing = [
        f"{key} ({there.get(key, 'absent')} there, {here.get(key, 'absent')} here)"
        for key in sorted({*there, *here} - set(free))
        if there.get(key) != here.get(key)  # a key that did not exist when the folder was written is as one that is null
    ]
    if differing:
        raise ValueError(f"{out} holds results of other settings; give another out, or remove it: {', '.join(differing)}")


def read_config(out: Folder) -> dict[str, Any]:
    """Return the settings in the config.yaml of a run; nothing if it is the file of somebody else."""
    try:
        settings = OmegaConf.to_container(OmegaConf.create(out.read("config.yaml").decode()))
    except (ValueError, YAMLError, OmegaConfBaseException):
        return {}
    return {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {key: value for name, child in node.items() for key, value in _flat(child, f"{prefix}{name}.").items()}
    return {prefix[:-1]: node}


def set_up(network: UNet | Classifier, device: torch.device, precision: str, compiled: bool) -> None:
    """Move a network to its device and precision, and compile it if asked."""
    network.set_precision(PRECISIONS[precision])
    network.to(device)
    if compiled:
        network.compile()


def load(node: DictConfig, device: torch.device, precision: str, compiled: bool) -> Any:
    """The network of a config with `network` and `checkpoint`, its weights loaded.

    Raises:
        ValueError: no weights; weights that do not fit, with the names of the configs that they do fit.
        OSError: weights that cannot be fetched, with their size and the command that fetches them.
    """
    if node.checkpoint is None:
        raise ValueError(f"{node._get_full_key('checkpoint')} is missing: the file or address of the weights")
    with torch.device("meta"):
        network = instantiate(node.network, _convert_="all")
    try:
        notes = load_network(network, node.checkpoint)
    except CheckpointMismatch as error:
        fitting = _fitting_configs(error.shapes)
        advice = f"its entries fit {' or '.join(fitting)}" if fitting else "no config in configs/ has these entries"
        raise ValueError(f"{error}; {advice}") from error
    except OSError as error:
        if "://" not in node.checkpoint or isinstance(error, CacheError):
            raise
        size = sum(4 * value.numel() for value in network.state_dict().values()) / 1e9
        raise OSError(
            f"{error}; where there is one, python scripts/download.py what=[{node.name}] fetches the {size:.2f} GB"
        ) from error
    show_notes(node.checkpoint, notes)
    set_up(network, device, precision, compiled)
    return network


def show_notes(checkpoint: str, notes: Sequence[str]) -> None:
    """Print, in the main process, how the weights were found in a file that holds more."""
    if notes and Process.current().main:
        print(f"weights   {checkpoint}: {'; '.join(notes)}", flush=True)


def image_size(network: Any, size: Sequence[int] | None) -> tuple[int, int]:
    """(height, width) in pixels: those of a config's `size`, or the network's own square.

    Raises:
        ValueError: not two numbers, or a size that the network cannot halve as often as it does.
    """
    if size is None:
        return network.image_size, network.image_size
    factor = network.image_size // getattr(network, "lowest_resolution", network.image_size)
    if len(size) != 2 or min(size) < 1 or any(length % factor for length in size):
        raise ValueError(f"size must be [height,width] in pixels, both divisible by {factor} here, got {list(size)}")
    return size[0], size[1]


def _fitting_configs(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    fitting = []
    for group in ("model", "classifier"):
        for file in sorted((CONFIGS / group).glob("*.yaml")):
            config = OmegaConf.load(file)
            if "network" not in config:
                continue
            with torch.device("meta"):
                network = instantiate(config.network, _convert_="all")
            if shapes == {name: tuple(value.shape) for name, value in network.state_dict().items()}:
                fitting.append(f"{group}={file.stem}")
    return fitting


def build_guidance(node: Mapping[str, DictConfig], load_node: Callable[[DictConfig], Any]) -> list[Guidance]:
    """The techniques of the config list `guidance`, in its order; a network that one names is loaded with `load_node`.

    Raises:
        ValueError: a technique that names a network which is not configured.
    """
    techniques = []
    for name, arguments in node.items():
        networks = {}
        for key, value in arguments.items():
            if value is None:
                names = ", ".join(choices(str(key)))
                raise ValueError(
                    f"guidance {name!r} needs a {key!s}, and this model comes with none; add {key!s}=... (one of {names})"
                )
            if OmegaConf.is_dict(value) and "checkpoint" in value:
                networks[str(key)] = load_node(value)
        rest = {key: value for key, value in arguments.items() if key not in networks}
        techniques.append(instantiate(rest, _convert_="all", **networks))
    return techniques
