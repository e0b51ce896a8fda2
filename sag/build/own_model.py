"""Models that are not what their config describes have a name of their own, and no bundled reference or classifier.

A composed config is settled once, before anything reads it: model=flags becomes an ordinary network and diffusion, and a model
whose network or weights are not those of its config loses what belongs to that config only.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sag.build.messages import open_configs
from sag.flags import (
    CLASSIFIER_FLAGS,
    NETWORK_FLAGS,
    OTHER_FLAGS,
    is_upsampler,
    read_diffusion_flags,
    read_unet_flags,
    split_flags,
)
from sag.storage import without_digest

STEPS = 250  # of a model that does not say how many
INSTEAD = {  # the keys that stand for flags which do not describe the model
    "batch_size": "batch_size",
    "num_samples": "num_samples",
    "use_fp16": "precision",
    "use_ddim": "sampler",
    "model_path": "model.checkpoint",
    "classifier_path": "classifier.checkpoint",
    "classifier_scale": "guidance.classifier.scale",
    "base_samples": "low_res",
    "data_dir": "data.path",
    "lr": "settings.learning_rate",
    "weight_decay": "settings.weight_decay",
    "microbatch": "settings.microbatch",
    "ema_rate": "settings.ema_rates",
    "resume_checkpoint": "start",
}


def settle(cfg: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Make the model of a composed config what the rest of a program takes it for, in place.

    Args:
        cfg: the config of any program; one without a model stays as it is.
        choices: the names chosen for the config groups, as Hydra keeps them.
        overrides: those of the command line; what they set was meant for this very model.

    Returns:
        What a user should know about the model, a sentence each.

    Raises:
        ValueError: flags that cannot be read.
    """
    given = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    notes: list[str] = []
    if not OmegaConf.is_dict(cfg.get("model")):
        return notes
    if "flags" in cfg.model:
        notes = _expand(cfg, given)
    else:
        differing = _differing(cfg.model, "model", str(choices.get("model")))
        if differing:
            named = any(key.split(".")[0] == "classifier" for key in given) or choices.get("classifier") != choices["model"]
            if "classifier" in cfg and not named:
                cfg.classifier = None
            notes = [_disown(cfg.model, str(choices["model"]), differing, given)]
    if cfg.get("classifier") is not None and "classifier.name" not in given:
        differing = _differing(cfg.classifier, "classifier", str(choices.get("classifier")))
        if differing:
            cfg.classifier.name = _own_name(cfg.classifier.checkpoint, differing)
    return notes


def reference_of(model: DictConfig) -> str | None:
    """The reference of a recorded model, unless it is that of a config which only lent the model its name."""
    base = _config("model", str(model.get("name")))
    lent = base is not None and model.get("reference") == base.get("reference") and _differing(model, "model", "")
    return None if lent else model.get("reference")


def sag_defaults(image_size: int, num_classes: int | None) -> dict[str, Any]:
    """Settings of SAG for a network without settings of its own.

    The layer that every network has, the scales published for ADM's 256-pixel models with and without classes, and the blurs
    of the published models of this size.
    """
    return {
        "scale": 0.5 if num_classes is None else 0.2,
        "layer": "middle",
        "blur_sigma": 1 if image_size <= 64 else 3 if image_size <= 128 else 9,
    }


def _config(group: str, name: str) -> DictConfig | None:
    """The config `name` of a group as its file has it, None if there is none."""
    with open_configs():
        loader = GlobalHydra.instance().config_loader()
        if name not in loader.get_group_options(group):
            return None
        found: DictConfig = loader.load_configuration(f"{group}/{name}", [], RunMode.RUN)[group]
    return found


def _differing(node: DictConfig, group: str, choice: str) -> list[str]:
    """Which of network and checkpoint are not those of the config that the node is named after, or else was chosen."""
    base = _config(group, str(node.get("name"))) or _config(group, choice)
    if base is None or "network" not in base:
        return []
    same_network = OmegaConf.to_container(node.network) == OmegaConf.to_container(base.network)
    same_weights = _same_weights(node.checkpoint, base.checkpoint)
    return [*([] if same_network else ["network"]), *([] if same_weights else ["checkpoint"])]


def _same_weights(found: str | None, own: str | None) -> bool:
    """Whether a checkpoint is that of the config: the same source, or a copy of a published file under the same file name."""
    if found is None or own is None or "://" not in own:
        return found == own
    return PurePosixPath(without_digest(found)).name == PurePosixPath(without_digest(own)).name


def _own_name(checkpoint: str | None, differing: Collection[str] = ("checkpoint",)) -> str:
    """A name that is safe as part of a file name, after the checkpoint where it is not that of a config."""
    if checkpoint is None or "checkpoint" not in differing:
        return "own"
    stem = re.sub(r"\.(pt|pth|ckpt|bin|safetensors)$", "", PurePosixPath(without_digest(checkpoint)).name)
    return ("own_" + re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:80].strip("._-")).rstrip("_")


def _disown(model: DictConfig, choice: str, differing: Sequence[str], given: Collection[str]) -> str:
    """Take from a model what belongs only to the config that it is named after, or was chosen; says so."""
    bundled = model.name if _config("model", model.name) is not None else choice
    base = _config("model", bundled)
    if "model.reference" not in given and base is not None and model.get("reference") == base.get("reference"):
        model.reference = None
    if "model.name" not in given:
        model.name = _own_name(model.checkpoint, differing)
    note = f"this is not {bundled}, as its {' and '.join(differing)} differ; it has no bundled reference or classifier"
    if "network" in differing and OmegaConf.is_dict(model.get("sag")):
        for key, value in sag_defaults(model.network.image_size, model.network.get("num_classes")).items():
            if f"model.sag.{key}" not in given:
                model.sag[key] = value
        note += ", and general settings of SAG"
    return note


def _expand(cfg: DictConfig, given: Collection[str]) -> list[str]:
    """Put the network and the diffusion that model.flags describe in their place; says which flags have no use."""
    model = cfg.model
    flags: Any = OmegaConf.to_object(model.flags) if OmegaConf.is_dict(model.flags) else model.flags
    if not flags:
        raise ValueError("model.flags is empty; model=flags needs the flags that describe the network and its diffusion")
    try:
        named = split_flags(flags)
        upsampling = is_upsampler(flags)
        network = read_unet_flags(flags, upsampling, model.image_channels, model.num_classes)
        diffusion = read_diffusion_flags(flags)
    except ValueError as error:
        raise ValueError(f"model.flags: {error}") from error
    if "model.num_classes" in given and network["num_classes"] is None:
        raise ValueError(f"model.num_classes={model.num_classes} needs the flag --class_cond True in model.flags")
    schedule, steps, rescale, respacing = (
        diffusion.pop(key) for key in ("schedule", "steps", "rescale_timesteps", "respacing")
    )
    kept = model.steps or (int(respacing) if respacing.isdigit() else respacing) or min(STEPS, steps)
    path = named.get("model_path")
    checkpoint = model.checkpoint or (None if path is None else str(named.pop("model_path")))
    sag = sag_defaults(network["image_size"], network["num_classes"])
    cfg.model = {
        "name": model.name if "model.name" in given else _own_name(checkpoint),
        "checkpoint": checkpoint,
        "reference": model.reference,
        "network": {"_target_": f"sag.models.{'UpsamplingUNet' if upsampling else 'UNet'}"}
        | {key: list(value) if isinstance(value, tuple) else value for key, value in network.items()},
        "diffusion": {
            "_target_": "sag.diffusion.GaussianDiffusion",
            "schedule": {"_target_": f"sag.diffusion.Schedule.{schedule}", "steps": steps, "rescale_timesteps": rescale},
            **diffusion,
        },
        "null_label": model.null_label,
        "steps": kept,
        "sag": {key: sag[key] if value is None else value for key, value in model.sag.items()},
    }
    if respacing and "sampler" in cfg and not {"sampler.steps", "model.steps"} & set(given):
        cfg.sampler.steps = kept
    unused = [name for name in named if name in OTHER_FLAGS or name in set(CLASSIFIER_FLAGS) - set(NETWORK_FLAGS)]
    if not unused:
        return []
    keys = [f"{INSTEAD[name]}=" for name in unused if name in INSTEAD]
    instead = f"; give {', '.join(keys)} instead" if keys else ""
    return [f"the flags {', '.join(unused)} do not describe the model and are not used{instead}"]
