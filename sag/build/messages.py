"""The sentences for errors: each names the key, the value that was given, and the values that are allowed."""

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sag.build.arguments import hint_of
from sag.build.checks import SETTINGS, fits, refused
from sag.build.groups import CONFIGS, EXPERIMENT, choices, is_group, load_config
from sag.build.tables import experiments, store_experiments


def user_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that are a user's to mend; those of libraries that are not imported cannot occur."""
    of_libraries = {"torch": "OutOfMemoryError", "blobfile": "Error"}
    found = [getattr(sys.modules[module], name) for module, name in of_libraries.items() if module in sys.modules]
    return (HydraException, OmegaConfBaseException, ValueError, OSError, FloatingPointError, *found)


def sentence(error: BaseException) -> str:
    """Return the sentence for an error in a program."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        if isinstance(error.__cause__, TypeError):  # what no check of types sees
            return " ".join(f"{error.__cause__}; see the file in configs/ for the keys there are".split())
        return sentence(error.__cause__)
    message = " ".join(str(error).split())
    if isinstance(error, OmegaConfBaseException):
        return _of_omegaconf(error, message)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; it may not be imported
        return f"the memory of the GPU is full ({message[:200]}); the same command with a smaller batch_size continues"
    return message


def explain(error: Exception, config: str, schema: type, overrides: Sequence[str]) -> str:
    """Return the sentence for an error that Hydra raised while composing.

    Args:
        error: what Hydra raised.
        config: the name of the primary config.
        schema: a dataclass of its keys.
        overrides: those of the command line.
    """
    message = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if not group:
            return f"there is no config {name!r} in {CONFIGS}"
        return unknown_choice(group, name, _options(group))
    quoted = re.findall(r"'([^']*)'", message)
    if message.startswith("Could not override '"):
        return _unknown_key(quoted[0], config, overrides)
    merged = re.search(r"Error merging override (.*)", message)
    if merged:
        key, _, value = merged.group(1).partition("=")
        hint = SETTINGS.get(key.lstrip("+"), hint_of(key.lstrip("+"), schema))
        if hint is not None:
            plain = re.fullmatch(r"-?[\d.]+(e-?\d+)?|null|true|false|[\[{'].*", value)
            return refused(key.lstrip("+"), hint, value if plain else repr(value))
        return f"{merged.group(1)} cannot be set: {' '.join(str(error.__cause__).split())}"
    if message.startswith("Ambiguous value for argument"):
        key, _, value = quoted[0].partition("=")
        hint = list if is_group(key) else SETTINGS.get(key, hint_of(key, schema))
        forms = [
            *([f"{key}=[{value}] for a list"] if hint is None or fits(OmegaConf.create([]), hint) else []),
            *([f"\"{key}='{value}'\" for one text"] if hint is None or fits("", hint) else []),
        ]
        write = f"; write {' or '.join(forms)}" if forms else ""
        return (
            f"{key}={value} is several values, and one is wanted{write} (scripts/sweep.py samples and scores each of several)"
        )
    if "An item is already at" in message:
        return f"{quoted[0]} is there already; write {quoted[1]}, without the +"
    if message.startswith(("Could not delete", "Error resolving interpolation '${")):
        for override in overrides:
            group, _, value = override.partition("=")
            if is_group(group.lstrip("~")) and (group.startswith("~") or value.startswith("[")):
                return _names_wanted(override)
        if "delete" not in message:
            return sentence(error)
        return f"there is no {quoted[0]} to remove with ~{_suggest(quoted[0], config, overrides)}"
    chosen = re.match(r"Multiple values for (\S+)\. |(\S+) appears more than once in the final defaults list", message)
    if chosen:
        group = chosen[1] or chosen[2]
        return f"{group} is chosen already; write {group}=..., without the +"
    return sentence(error)


def unknown_choice(group: str, name: str, options: Sequence[str]) -> str:
    """Return the sentence that a config group has no such config, with all its configs and the nearest name."""
    near = difflib.get_close_matches(name, options, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {group} {name!r}; expected one of {', '.join(sorted(options))}{guess}"


def unknown_keys(keys: Sequence[str], config: str, overrides: Sequence[str]) -> str:
    """Return the sentence that a program does not know some keys."""
    return (
        f"unknown config key {', '.join(map(repr, keys))}{_suggest(keys[0], config, overrides) or ';'} --cfg job lists all keys"
    )


def missing(key: str, config: str, chosen: Mapping[str, Any]) -> str:
    """Return the sentence that a key has no value; the file that has the key says what it is and gives an example.

    Args:
        key: with its dots.
        config: the name of the primary config.
        chosen: the names of the configs in each group.
    """
    group = key.partition(".")[0]
    file = CONFIGS / (f"{group}/{chosen[group]}.yaml" if group in chosen else f"{config}.yaml")
    text = file.read_text() if file.exists() else ""
    comment = re.search(rf"^ *{re.escape(key.rpartition('.')[2])}: \?\?\? +# (.*)$", text, re.MULTILINE)
    what = f" ({comment.group(1)})" if comment else ""
    example = re.search(r"^# [^:\n]*: (.*)$", text, re.MULTILINE)
    return f"{key} is missing{what}" + (f"; for example: {example.group(1).partition(';')[0]}" if example else "")


def _of_omegaconf(error: OmegaConfBaseException, message: str) -> str:
    key = error.full_key or ""
    plain = re.sub(r" full_key: .*", "", message)
    if isinstance(error, MissingMandatoryValue):
        return f"{key or plain.rpartition(' ')[2]} is missing"
    if "Recursive interpolation" in plain:
        return f"{key} refers to itself through ${{...}}; give it a value"
    unknown = re.search(r"Interpolation key '([^']*)' not found", plain)
    if unknown:
        return f"{key} refers to ${{{unknown.group(1)}}}, but there is no key {unknown.group(1)!r}"
    absent = re.search(r"Error trying to access ([\w.]+): node `([\w.]+)` is not a container", plain)
    if absent:
        group = absent.group(2)
        return f"{key} needs {absent.group(1)}, but there is no {group}; give {group}=... (one of {', '.join(choices(group))})"
    return f"{key}: {plain}" if key and key not in plain else plain


def _unknown_key(key: str, config: str, overrides: Sequence[str]) -> str:
    """Return what is wrong with a key that the composed config does not have."""
    group, _, rest = key.partition(".")
    value = next((override.partition("=")[2] for override in overrides if override.startswith(f"{key}=")), "...")
    if key == EXPERIMENT and value not in _options(key):
        return unknown_choice(key, value, _options(key))
    if key.startswith("model.sag"):
        return f"{key} is no longer a key; write guidance.{key.removeprefix('model.')}={value}"
    if group == "hydra":
        return f"unknown key {key!r} of Hydra; --cfg hydra lists all of them"
    base = _choose(config, overrides)
    if base is not None and rest and is_group(group) and group in base:
        chosen, first = base[group], rest.partition(".")[0]
        if group == "model" and "flags" in list(chosen):
            return f"unknown config key {key!r}; model=flags takes the network and its diffusion from model.flags"
        if chosen is None:
            return f"{group} is not in use; choose one with {group}=... (one of {', '.join(choices(group))})"
        if (
            first in choices(group)
            and first not in chosen
            and all(k.partition(".")[0] == first for k in _keys_of(group, first))
        ):
            return f"{group}.{first} is not in use; add {first} to the list: {group}=[{','.join([*chosen, first])}]"
        others = [f"{group}={name}" for name in choices(group) if rest in _keys_of(group, name)]
        if others and not OmegaConf.is_dict(chosen.get(first)):
            return f"{key!r} is no key of the {group} in use; it is one of {', '.join(others)}"
    return unknown_keys([key], config, overrides)


def _suggest(key: str, config: str, overrides: Sequence[str]) -> str:
    """Return a guess at the intended key; empty if no key is similar."""
    base = _choose(config, overrides)
    if base is None:
        return ""
    parent, _, last = key.rpartition(".")
    known = list(_dotted(OmegaConf.to_container(base, resolve=False)))
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    siblings += [] if parent else [folder.name for folder in CONFIGS.iterdir() if folder.is_dir()]
    same = [k for k in known if k.rpartition(".")[2] == last]
    near = (
        difflib.get_close_matches(key, same, n=1 if parent else 3, cutoff=0.0)
        or difflib.get_close_matches(last, siblings, n=1)
        or difflib.get_close_matches(key, known, n=1)
    )
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _choose(config: str, overrides: Sequence[str]) -> DictConfig | None:
    """Return the config with the chosen groups of `overrides` but without their values; None if it cannot be composed."""
    chosen = [override for override in overrides if is_group(override.partition("=")[0])]
    try:
        if GlobalHydra.instance().is_initialized():
            return compose(config, chosen)
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose(config, chosen)
    except (HydraException, OmegaConfBaseException):
        return None


def _keys_of(group: str, name: str) -> list[str]:
    return list(_dotted(OmegaConf.to_container(load_config(group, name) or OmegaConf.create())))


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{name}"
        yield from _dotted(value, f"{prefix}{name}.")


def check_choices(overrides: Sequence[str]) -> None:
    """Raise a ValueError for an override that gives a config group something else than a name."""
    for override in overrides:
        group, equals, value = override.partition("=")
        if group == EXPERIMENT:
            store_experiments(experiments() if "(" in value else re.split(r"[\s,\[\]'\"]+", value))  # glob(...) is any of them
        if is_group(group) and equals and re.fullmatch(r"null|true|false|[\d.]*", value):
            raise ValueError(_names_wanted(override))


def _options(group: str) -> list[str]:
    return sorted({*choices(group), *(experiments() if group == EXPERIMENT else ())})


def _names_wanted(override: str) -> str:
    """Return which values the group of an override takes."""
    group = override.partition("=")[0].lstrip("~+")
    if group == "guidance":
        return f"{override} is no choice; write guidance=[] for none, or a list of {', '.join(choices(group))}"
    none = f", or ~{group} for none" if group == "classifier" else ""
    return f"{override} is no choice; {group} takes one name of {', '.join(_options(group))}{none}"
