"""Check the values of a composed config against the types that its users declare, before anything is built."""

import collections.abc
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from sag.data import Labels

SETTINGS: dict[str, Any] = {  # keys whose types are declared neither in a schema nor by a constructor
    "model": Mapping,
    "model.name": str,
    "model.flags": str | Mapping,
    "model.image_channels": int,
    "model.num_classes": int,
    "model.checkpoint": str | None,
    "model.reference": str | None,
    "model.network": Mapping,
    "model.network.image_size": int,
    "model.network.num_classes": int | None,
    "model.diffusion": Mapping,
    "model.null_label": int | None,
    "model.steps": int | str | None,
    "model.latent": bool,
    "model.autoencoder": Mapping | None,
    "model.autoencoder.network": Mapping,
    "model.autoencoder.checkpoint": str | None,
    "model.denoiser": Mapping,
    "classifier": Mapping | None,
    "classifier.name": str,
    "classifier.checkpoint": str,
    "classifier.network": Mapping,
    "sampler": Mapping,
    "settings": Mapping,
    "task": Mapping,
    "task.objective": Mapping,
    "data": Mapping,
    "table": Mapping,
    "extractor": Mapping | None,
    "published": Mapping | None,
    "size": tuple[int, int] | None,  # height and width
    "labels": Labels,
    "what": str | Sequence[str],
}
WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
    Path: "a path",
}
GIVEN_LATER = ("device", "precision", "compiled")
"""What `sag.build.denoiser` gives to whatever makes the denoiser."""
PLURALS = {int: "whole numbers", float: "numbers", str: "names", bool: "true or false"}
LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)


def check_settings(cfg: DictConfig) -> None:
    """Check the values of the keys in `SETTINGS`.

    Raises:
        ValueError: If a value has another type; the message names the key and the types that it takes.
    """
    for key, hint in SETTINGS.items():
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if OmegaConf.is_dict(node) and last in node and not OmegaConf.is_missing(node, last):
            _check(node, last, hint)
    for name in cfg.get("guidance") or ():
        _check(cfg.guidance, name, Mapping)


def check_targets(cfg: DictConfig) -> None:
    """Check the arguments of everything that a config builds against the signature of its constructor.

    Raises:
        ValueError: If a constructor cannot be imported, or an argument is unknown, missing, or of another type.
    """
    for node in nodes(cfg):
        if "_target_" not in node:
            continue
        place = node._get_full_key("")
        try:
            target = get_object(node._target_)
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, ValueError):  # a library that is not installed, with the command that installs it
                raise cause from error
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(f"{place}._target_={node._target_} cannot be imported: {reason}") from error
        parameters, hints = _signature(target)
        given = [str(key) for key in node if not str(key).startswith("_")]
        later = GIVEN_LATER if place == "model.denoiser" else ()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            unknown = [key for key in given if key not in parameters]
            if unknown:
                raise ValueError(
                    f"{place}: {target.__qualname__} got an unexpected keyword argument {unknown[0]!r}; "
                    f"it takes {', '.join(parameters)}"
                )
        lacking = [
            name for name, p in parameters.items() if p.default is p.empty and _named(p) and name not in (*given, *later)
        ]
        if lacking and "_args_" not in node:
            raise ValueError(f"{place}.{lacking[0]} is missing; {target.__qualname__} needs it")
        for key in given:
            if key in hints:
                _check(node, key, hints[key])


def fits(value: Any, hint: Any) -> bool:
    """Return whether a config value fits a type. Types that no config can hold, such as modules, fit any group of keys."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if hint in (None, types.NoneType):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, bool)
    if hint in (str, Path):  # a whole number may be a name
        return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
    if (origin or hint) in LISTS:
        return OmegaConf.is_list(value) and all(fits(item, part) for item in value for part in parts[:1])
    return OmegaConf.is_dict(value) or (value is None and hint is not Mapping and origin is not collections.abc.Callable)


def takes(hint: Any) -> str:
    """Return a type in words, such as "a whole number or null"."""
    options = list(dict.fromkeys(_options(hint)))
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)


def _options(hint: Any) -> Iterator[str]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from _options(part)
    elif origin is Literal:
        yield from (part if isinstance(part, str) else shown(part) for part in parts)
    elif (origin or hint) in LISTS:
        count = f"{len(parts)} " if origin is tuple and Ellipsis not in parts else ""
        yield f"a list of {count}{PLURALS.get(parts[0], 'entries') if parts else 'entries'}"
    else:
        yield WORDS.get(hint, "keys of its own")


def refused(key: str, hint: Any, value: str) -> str:
    """Return the message that a key does not take a value.

    Args:
        key: The key.
        hint: The type that it takes.
        value: The value, written as on the command line.
    """
    parts = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    items = {item for part in parts if get_origin(part) in LISTS and get_origin(part) is not tuple for item in get_args(part)}
    advice = ""
    if Mapping in parts or any(get_origin(part) is dict for part in parts):
        advice = f"; set one of them, as {key}.name=value"
    elif (str in items and value[:1] not in "[{" and value != "null") or (int in items and re.fullmatch(r"-?\d+", value)):
        advice = "; write {}=[{}]".format(key, value.strip("'"))
    words = takes(hint).replace("a number", "a finite number") if value in ("nan", "inf", "-inf") else takes(hint)
    return f"{key} takes {words}, got {value}{advice}"


def shown(value: Any) -> str:
    """Return a value as it is written on the command line, texts in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)


def _check(node: DictConfig, key: str, hint: Any) -> None:
    value = node[key]
    if fits(value, hint):
        return
    raw = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index, call-overload]
    source = re.fullmatch(r"\$\{([\w.]+)\}", raw) if isinstance(raw, str) else None
    place = source.group(1) if source else node._get_full_key(key)
    raise ValueError(refused(place, hint, shown(value)))


def nodes(node: Any) -> Iterator[DictConfig]:
    """Yield a config and all mappings inside it, without following interpolations."""
    if OmegaConf.is_dict(node):
        yield node
    if OmegaConf.is_config(node):
        for key in range(len(node)) if OmegaConf.is_list(node) else list(node):
            if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
                yield from nodes(node[key])


def missing_keys(cfg: DictConfig) -> list[str]:
    """Return the keys without a value; a key that refers to one of them has no part in that."""
    return [
        node._get_full_key(key)
        for node in nodes(cfg)
        for key in map(str, node)
        if not OmegaConf.is_interpolation(node, key) and OmegaConf.is_missing(node, key)
    ]


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _signature(target: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    try:
        parameters = dict(inspect.signature(target).parameters)
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (TypeError, ValueError, NameError):  # it is written in C, or its types do not exist at run time
        return {"": inspect.Parameter("_", inspect.Parameter.VAR_KEYWORD)}, {}
    return parameters, hints
