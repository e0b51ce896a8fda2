"""A model that differs from its config gets its own name, and neither the bundled reference nor the classifier.

A composed config is settled once, before anything reads it: model=flags becomes an ordinary network and diffusion, and a model
whose network or weights are not those of its config loses what belongs to that config only.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sag.build.by_model import fix_values
from sag.build.groups import load_config
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
    """Bring the model of a composed config to the form that programs expect; the config is changed.

    Args:
        cfg: the config of any program; one without a model stays as it is.
        choices: the names chosen for the config groups, as Hydra keeps them.
        overrides: those of the command line; what they set was meant for this very model.

    Returns:
        What a user should know about the model, a sentence each.

    Raises:
        ValueError: flags that cannot be read, or settings of SAG, which have another place.
    """
    given = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    notes: list[str] = []
    if not OmegaConf.is_dict(cfg.get("model")):
        return notes
    _use_short_keys(cfg)
    if "sag" in cfg.model:
        moved = " ".join(f"guidance.sag.{key}={value}" for key, value in (cfg.model.sag or {}).items())
        raise ValueError(f"model.sag is no longer a key; give {moved or 'guidance.sag.scale=...'} instead")
    if "flags" in cfg.model:
        notes = _expand(cfg, given)
        fix_values(cfg, None)
    elif "denoiser" in cfg.model and _is_for_any_weights(str(choices.get("model"))):
        if "model.name" not in given and not OmegaConf.is_missing(cfg.model, "checkpoint"):
            cfg.model.name = _own_name(cfg.model.checkpoint)
        fix_values(cfg, str(choices["model"]))
    else:
        bundled, base = _base(cfg.model, "model", str(choices.get("model")))
        differing = _differing(cfg.model, base)
        general = fix_values(cfg, None if "network" in differing else bundled) and "network" in differing
        if differing:
            named = any(key.split(".")[0] == "classifier" for key in given) or choices.get("classifier") != choices["model"]
            if "classifier" in cfg and not named:
                cfg.classifier = None
            if "model.reference" not in given and base is not None and cfg.model.get("reference") == base.get("reference"):
                cfg.model.reference = None
            if "model.name" not in given:
                cfg.model.name = _own_name(cfg.model.checkpoint, differing)
            differ = " and ".join(differing) + (" differs" if len(differing) == 1 else " differ")
            note = f"this is not {bundled}, as its {differ}"
            note += "" if base is None or base.get("reference") is None else "; it has no bundled reference or classifier"
            notes = [f"{note}, and general settings of guidance" if general else note]
    if cfg.get("classifier") is not None and "classifier.name" not in given:
        differing = _differing(cfg.classifier, _base(cfg.classifier, "classifier", str(choices.get("classifier")))[1])
        if differing:
            cfg.classifier.name = _own_name(cfg.classifier.checkpoint, differing)
    return notes


def _use_short_keys(cfg: DictConfig) -> None:
    """Put the values of `path` and `negative_prompt` where the model has them."""
    if cfg.get("path") is not None:
        cfg.model.checkpoint = cfg.path
    if cfg.get("negative_prompt") is not None:
        if "negative_prompt" not in cfg.model.get("denoiser", ()):
            raise ValueError(f"{cfg.model.name} takes no text; leave out negative_prompt")
        cfg.model.denoiser.negative_prompt = cfg.negative_prompt


def reference_of(recorded: Mapping[str, Any]) -> str | None:
    """Return the reference of a recorded model; None if it belongs to a config of the same name with another network."""
    model = OmegaConf.create(dict(recorded))
    base = load_config("model", str(model.get("name")))
    lent = base is not None and model.get("reference") == base.get("reference") and _differing(model, base)
    return None if lent else model.get("reference")


def _is_for_any_weights(name: str) -> bool:
    """Return whether a config of the group model leaves its weights to the user."""
    base = load_config("model", name)
    return base is not None and OmegaConf.is_missing(base, "checkpoint")


def _base(node: DictConfig, group: str, choice: str) -> tuple[str, DictConfig | None]:
    """Return the config that a node is named after, or the chosen one, with its name."""
    base = load_config(group, str(node.get("name")))
    return (choice, load_config(group, choice)) if base is None else (node.name, base)


def _differing(node: DictConfig, base: DictConfig | None) -> list[str]:
    """Return which of network and checkpoint differ from those of a config."""
    if base is None or not {"network", "denoiser"} & set(base):
        return []
    same_network = node.get("network") == base.get("network")
    same_weights = _same_weights(node.checkpoint, base.checkpoint)
    return [*([] if same_network else ["network"]), *([] if same_weights else ["checkpoint"])]


def _same_weights(found: str | None, own: str | None) -> bool:
    """Return whether a checkpoint belongs to the config: it has the same source or, in another folder, the same name."""
    if found is None or own is None or "/" not in own:
        return found == own
    return PurePosixPath(without_digest(found)).name == PurePosixPath(without_digest(own)).name


def _own_name(checkpoint: str | None, differing: Collection[str] = ("checkpoint",)) -> str:
    """Return a name for a model, safe in file names; it follows the checkpoint if that is not the config's."""
    if checkpoint is None or "checkpoint" not in differing:
        return "own"
    stem = re.sub(r"\.(pt|pth|ckpt|bin|safetensors)$", "", PurePosixPath(without_digest(checkpoint)).name)
    return ("own_" + re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:80].strip("._-")).rstrip("_")


def _expand(cfg: DictConfig, given: Collection[str]) -> list[str]:
    """Replace model.flags by the network and the diffusion that they describe, and return notes on unused flags."""
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
    }
    if respacing and "sampler" in cfg and not {"sampler.steps", "model.steps"} & set(given):
        cfg.sampler.steps = kept
    unused = [name for name in named if name in OTHER_FLAGS or name in set(CLASSIFIER_FLAGS) - set(NETWORK_FLAGS)]
    if not unused:
        return []
    keys = [f"{INSTEAD[name]}=" for name in unused if name in INSTEAD]
    instead = f"; give {', '.join(keys)} instead" if keys else ""
    return [f"the flags {', '.join(unused)} do not describe the model and are not used{instead}"]
