"""The command-line flags of guided-diffusion and improved-diffusion, converted to constructor arguments.

Names and defaults are those of the programs, since people have them in their shell scripts.
"""

import difflib
import re
import shlex
from collections.abc import Mapping
from typing import Any

NETWORK_FLAGS: dict[str, Any] = {
    "image_size": 64,
    "large_size": None,
    "small_size": None,
    "num_channels": 128,
    "num_res_blocks": 2,
    "channel_mult": "",
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "dropout": 0.0,
    "class_cond": False,
    "learn_sigma": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
DIFFUSION_FLAGS: dict[str, Any] = {
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "learn_sigma": False,
    "sigma_small": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "clip_denoised": True,
}
CLASSIFIER_FLAGS: dict[str, Any] = {
    "image_size": 64,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
}
# Flags of training, precision and programs, which do not describe a network or its diffusion
OTHER_FLAGS = frozenset(
    [
        *["use_kl", "rescale_learned_sigmas", "use_checkpoint", "use_fp16", "classifier_use_fp16"],
        *["batch_size", "num_samples", "use_ddim", "model_path", "classifier_path", "classifier_scale", "base_samples"],
        *["data_dir", "schedule_sampler", "lr", "weight_decay", "lr_anneal_steps", "microbatch", "ema_rate", "log_interval"],
        *["save_interval", "resume_checkpoint", "fp16_scale_growth"],
    ]
)
CHANNEL_MULT = {  # by image size; the last is improved-diffusion's
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
UPSAMPLER_CHANNEL_MULT = {512: (1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4)}  # by large_size
IMAGENET_CLASSES = 1000

Flags = Mapping[str, object] | str
"""Flags by name, or as one line of a shell script ("--image_size 64 --class_cond True")."""


def split_flags(flags: Flags) -> dict[str, object]:
    """Return flags by name.

    A line may be copied from a shell script: it may have line breaks after backslashes, `--name=value`, quotes around it, and
    an assignment to a variable. If a flag is given twice, the last value wins, as in the original programs.

    Args:
        flags: Flags by name, or as one line.

    Returns:
        The values as given. Those of a line are text.

    Raises:
        ValueError: If a line has anything other than flags with values.
    """
    if not isinstance(flags, str):
        return dict(flags)
    try:
        words = _words(re.sub(r"\\[ \t]*(\r?\n|\Z)", " ", flags))
    except ValueError as error:
        raise ValueError(f"the flags cannot be read ({str(error).lower()}): {flags!r}") from error
    given: dict[str, object] = {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise ValueError(f"flags must come as '--name value' pairs, but {name!r} belongs to no flag{_hint(name)}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ValueError(
                    f"flags must come as '--name value' pairs, but {name} has no value; write {name} True, or a number"
                )
            value = words.pop(0)
        given[name[2:]] = value
    return given


def _words(line: str) -> list[str]:
    words: list[str] = []
    for word in shlex.split(line):
        inner = re.sub(r"^(\w+=)?\s*", "", word)  # MODEL_FLAGS="--image_size 64 ..."
        whole_line = inner.startswith("--") and (inner != word or " --" in " ".join(inner.split()))
        words += _words(inner) if whole_line else [word]
    return words


def _hint(word: str) -> str:
    if word.startswith("$"):
        return "; the shell inserts the value of a variable only within double quotes"
    if word.startswith(("\N{EN DASH}", "\N{EM DASH}")):
        return f"; write --{word[1:]}, with two hyphens"
    if re.fullmatch(r"[\d.]+,?", word):
        return "; write lists of numbers without spaces, as 32,16,8"
    return ""


def read_flags(flags: Flags, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of flags, with defaults for the missing ones.

    Args:
        flags: See `Flags`. Text ("True", "0.1", "32") is converted to the type of the default.
        defaults: The flags to return, with their defaults.

    Raises:
        ValueError: If a flag is unknown (the message suggests the nearest known one), or text does not have the flag's type.
    """
    given = split_flags(flags)
    known = {*NETWORK_FLAGS, *DIFFUSION_FLAGS, *CLASSIFIER_FLAGS, *OTHER_FLAGS}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"unknown flag {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return {name: _convert(name, given[name], default) if name in given else default for name, default in defaults.items()}


def _convert(name: str, value: object, default: Any) -> Any:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        return float(value) if isinstance(default, float) else int(value)
    except (KeyError, ValueError):
        kind = {bool: "True or False", float: "a number"}.get(type(default), "a whole number")
        raise ValueError(f"flag {name} must be {kind}, got {value!r}") from None


def _numbers(name: str, text: object) -> tuple[float, ...]:
    try:
        return tuple(int(part) if float(part).is_integer() else float(part) for part in str(text).split(","))
    except ValueError:
        raise ValueError(f"flag {name} must be numbers separated by commas, got {text!r}") from None


def _channel_mult(text: object, size: int, defaults: Mapping[int, tuple[float, ...]]) -> tuple[float, ...]:
    if text:
        return _numbers("channel_mult", text)
    if size not in defaults:
        raise ValueError(f"size {size} has no default channel_mult (only {sorted(defaults)} have); give the flag channel_mult")
    return defaults[size]


def _positive(number: int) -> int | None:
    return None if number == -1 else number


def is_upsampler(flags: Flags) -> bool:
    """Return whether the flags describe an upsampler, which has large_size and small_size instead of image_size.

    Args:
        flags: See `Flags`.

    Raises:
        ValueError: If large_size is missing, or `read_flags` rejects the flags.
    """
    f = read_flags(flags, NETWORK_FLAGS)
    if f["large_size"] is None and f["small_size"] is not None:
        raise ValueError("the flag small_size describes an upsampler, which needs the flag large_size as well")
    return f["large_size"] is not None


def read_unet_flags(
    flags: Flags, upsampling: bool, image_channels: int = 3, num_classes: int = IMAGENET_CLASSES
) -> dict[str, Any]:
    """Return the constructor arguments of a `UNet` or `UpsamplingUNet`.

    Args:
        flags: See `Flags`.
        upsampling: Whether the network is an `UpsamplingUNet`, whose flags have large_size instead of image_size.
        image_channels: Channels of one image. The programs have 3 in their code.
        num_classes: Number of classes if class_cond is set. The programs have 1000 in their code.

    Raises:
        ValueError: If the flags describe the other kind of network, or `read_flags` rejects them.
    """
    f = read_flags(flags, NETWORK_FLAGS)
    if upsampling != (f["large_size"] is not None):
        fitting = "UNet" if upsampling else "UpsamplingUNet"
        raise ValueError(
            f"flags {'without' if upsampling else 'with'} large_size describe a {fitting}; use {fitting}.from_flags"
        )
    for name in ("image_size", "large_size", "num_channels", "num_res_blocks", "num_heads"):
        if f[name] is not None and f[name] < 1:
            raise ValueError(f"flag {name} must be at least 1, got {f[name]}")
    size = f["large_size"] if upsampling else f["image_size"]
    return {
        "image_size": size,
        "in_channels": image_channels * (2 if upsampling else 1),
        "model_channels": f["num_channels"],
        "out_channels": image_channels * (2 if f["learn_sigma"] else 1),
        "num_res_blocks": f["num_res_blocks"],
        "attention_resolutions": _numbers("attention_resolutions", f["attention_resolutions"]),
        "channel_mult": _channel_mult(f["channel_mult"], size, UPSAMPLER_CHANNEL_MULT if upsampling else CHANNEL_MULT),
        "num_classes": num_classes if f["class_cond"] else None,
        "dropout": f["dropout"],
        "num_heads": f["num_heads"],
        "num_heads_upsample": _positive(f["num_heads_upsample"]),
        "num_head_channels": _positive(f["num_head_channels"]),
        "use_scale_shift_norm": f["use_scale_shift_norm"],
        "resblock_updown": f["resblock_updown"],
        "use_new_attention_order": f["use_new_attention_order"],
    }


def read_diffusion_flags(flags: Flags) -> dict[str, Any]:
    """Return the arguments that describe a `GaussianDiffusion`.

    Args:
        flags: See `Flags`.

    Returns:
        schedule ("linear" or "cosine"), steps and rescale_timesteps, the arguments of `Schedule`; variance, prediction and
        clip_denoised, those of `GaussianDiffusion`; and respacing, "" for none.

    Raises:
        ValueError: If the schedule is unknown, or `read_flags` rejects the flags.
    """
    f = read_flags(flags, DIFFUSION_FLAGS)
    if f["noise_schedule"] not in ("linear", "cosine"):
        raise ValueError(f"unknown noise_schedule {f['noise_schedule']!r}; expected linear or cosine")
    return {
        "schedule": f["noise_schedule"],
        "steps": f["diffusion_steps"],
        "rescale_timesteps": f["rescale_timesteps"],
        "variance": "learned_range" if f["learn_sigma"] else "fixed_small" if f["sigma_small"] else "fixed_large",
        "prediction": "x_0" if f["predict_xstart"] else "eps",
        "clip_denoised": f["clip_denoised"],
        "respacing": str(f["timestep_respacing"]),
    }


def read_classifier_flags(flags: Flags) -> dict[str, Any]:
    """Return the constructor arguments of a `Classifier`.

    Args:
        flags: See `Flags`.

    Raises:
        ValueError: If `read_flags` rejects the flags.
    """
    f = read_flags(flags, CLASSIFIER_FLAGS)
    return {
        "image_size": f["image_size"],
        "in_channels": 3,
        "model_channels": f["classifier_width"],
        "num_classes": IMAGENET_CLASSES,
        "num_res_blocks": f["classifier_depth"],
        "attention_resolutions": _numbers("classifier_attention_resolutions", f["classifier_attention_resolutions"]),
        "channel_mult": _channel_mult("", f["image_size"], CHANNEL_MULT),
        "pool": f["classifier_pool"],
        "use_scale_shift_norm": f["classifier_use_scale_shift_norm"],
        "resblock_updown": f["classifier_resblock_updown"],
    }
