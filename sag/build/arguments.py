"""The arguments of a command line before Hydra reads them: quoted where that helps, refused in one sentence where not."""

import contextlib
import difflib
import io
import os
import re
import typing
from collections.abc import Sequence
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from sag.build.checks import SETTINGS, fits, refused
from sag.flags import CLASSIFIER_FLAGS, DIFFUSION_FLAGS, NETWORK_FLAGS

LITERAL = ("model.flags", "prompt", "negative_prompt")
"""Keys whose values are one text each, whatever commas it has."""
QUOTES = ("'", '"')
TEXTS = ("checkpoint", "path", "flags", "reference", "weights", "folder")
"""The last parts of keys whose values are texts, which are taken literally."""


def read_arguments(arguments: Sequence[str], schema: type) -> list[str]:
    """Return a command line that Hydra can read.

    Options may stand anywhere. Where a key takes a text (a path, an address, flags), its value is quoted if Hydra would read it
    as something else: a number, a list, or part of its grammar.

    Args:
        arguments: The arguments of a program.
        schema: A dataclass of the keys that the program knows.

    Raises:
        ValueError: If an option does not exist, or an argument cannot be read.
    """
    parser, said = get_args_parser(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            known, others = parser.parse_known_args(arguments)
    except SystemExit as error:
        if not error.code:
            raise
        raise ValueError(said.getvalue().strip().rpartition("error: ")[2]) from error
    for place, word in enumerate(arguments):
        if word in others and word.startswith("-"):
            following = [other for other in arguments[place + 1 : place + 2] if not other.startswith("-") and "=" not in other]
            raise ValueError(_no_option(word, following, schema))
    overrides = [*known.overrides, *others]
    options = list(arguments)
    for override in overrides:
        options.remove(override)
    return [*read_overrides(overrides, schema), *options]


def read_overrides(overrides: Sequence[str], schema: type) -> list[str]:
    """Return overrides that Hydra can read.

    Args:
        overrides: The arguments that are not options.
        schema: A dataclass of the keys that the program knows.

    Raises:
        ValueError: If an override cannot be read.
    """
    found = []
    parser = OverridesParser.create()
    for place, override in enumerate(overrides):
        if override.startswith("="):
            raise ValueError(f"{override!r} has no key; write key=value")
        quoted = _quoted(override, schema, parser)
        if _parsed(quoted, parser) is None:
            raise ValueError(_unreadable(overrides, place, schema))
        found.append(quoted)
    return found


def quote(text: str) -> str:
    """Return `text` in quotes, escaped by the rules of Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def hint_of(key: str, schema: type) -> Any:
    """Return the type of a top-level key, or None for any other key."""
    return typing.get_type_hints(schema).get(re.sub(r"\[.*", "", key))


def _parsed(override: str, parser: OverridesParser) -> Override | None:
    try:
        return parser.parse_override(override)
    except HydraException:
        return None


def _quoted(override: str, schema: type, parser: OverridesParser) -> str:
    """Return the override; its value is quoted if it is a text that Hydra would read as something else."""
    key, equals, value = override.partition("=")
    plain, parsed = key.lstrip("+"), _parsed(override, parser)
    if not equals or value == "null":
        return override
    hint = hint_of(plain, schema)
    if hint in (list[str], list[str] | None) and parsed is None and re.fullmatch(r"\[.*\]", value, re.DOTALL):
        return f"{key}=[{','.join(map(_item, _split(value[1:-1])))}]"
    if hint not in (str, str | None) and ("." not in plain or plain.rpartition(".")[2] not in TEXTS):
        return override
    if not value.strip() and plain not in LITERAL[1:]:  # the empty prompt is the unconditional one
        raise ValueError(f"{override} has no value; a variable of the shell may be empty")
    if value.startswith("~/"):  # not every shell replaces it after the = of an argument
        return f"{key}={quote(os.path.expanduser(value))}"
    if plain in LITERAL:
        value = re.sub(r"(?<!\\)\$\{", r"\\${", value)  # once, however often it is read
        return f"{key}={value if parsed is not None and value[:1] in QUOTES else quote(value)}"
    if parsed is not None and (parsed.is_sweep_override() or isinstance(parsed.value(), str)):
        return override
    return f"{key}={quote(value)}"


def _split(text: str) -> list[str]:
    """Return the items of a list: the text is split at the commas outside inner brackets."""
    items, depth = [""], 0
    for sign in text:
        depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0:
            items.append("")
        else:
            items[-1] += sign
    return [item.strip() for item in items if item.strip()]


def _item(text: str) -> str:
    return text if text[0] == text[-1] and text[0] in "'\"" and len(text) > 1 else quote(text)


def _no_option(word: str, following: Sequence[str], schema: type) -> str:
    name, _, value = word.lstrip("-").partition("=")
    given = value or (following[0] if following else "...")
    keys = list(typing.get_type_hints(schema))
    same = name.replace("-", "_")
    letter = [key for key in keys if key.startswith(name[:1]) and key not in LITERAL]
    first = letter if len(name) == 1 else difflib.get_close_matches(same, keys, n=1)
    if same in {*NETWORK_FLAGS, *DIFFUSION_FLAGS, *CLASSIFIER_FLAGS} - {*keys}:
        line = f'model=flags model.flags="--{name} {given} ..."'
        return f"there is no option {word}; the flags of guided-diffusion are given as {line}"
    if same in keys or len(first) == 1:
        key = same if same in keys else first[0]
        written = f"'{key}={given}'" if " " in given else f"{key}={given}"
        return f"there is no option {word}; write {written}, without dashes"
    return f"there is no option {word}; settings are given as key=value, without dashes, and --help lists the options"


def _unreadable(overrides: Sequence[str], place: int, schema: type) -> str:
    """Return what to do about an override that Hydra's grammar does not allow."""
    word, before, after = overrides[place], overrides[place - 1] if place else "", overrides[place + 1 : place + 2]
    keys = typing.get_type_hints(schema)
    key, equals, value = word.partition("=")
    if key.strip() != key or value.startswith((" ", "=")):
        return f"{word!r} cannot be read; write {key.strip()}={value.strip(' =')}, with one = and no spaces around it"
    if not equals:
        name, _, given = word.partition(":")
        if name in keys:
            following = [other for other in overrides[place + 1 :] if other != "="]
            return f"{word!r} has no value; write {name}={given or (following[0] if following else '...')}"
        if before.endswith("="):
            return f"there is a space after {before!r}; write {before}{word}"
        if before:
            return (
                f"{word!r} is not of the form key=value; if it belongs to {before!r}, quote the two together: '{before} {word}'"
            )
        key = next((key for key in ("samples", "out", "what") if key in keys), "key")
        return f"{word!r} is not of the form key=value; write {key}={word}, or whatever key it belongs to"
    if any(value.count(opened) > value.count(closed) for opened, closed in ("[]", "{}", "()")):
        rest = " ".join(overrides[place:]).partition("]")
        if after and "".join(rest).startswith(f"{word} ") and len(rest[0]) > len(word):
            return f"{word!r} is cut at a space; quote the whole argument: '{rest[0]}{rest[1]}', or leave out the space"
        return f"a bracket of {word!r} is not closed"
    if not value.startswith("[") and hint_of(key, schema) in (list[str], list[str] | None):
        return f"{key} takes a list; write '{key}=[{value}]'"
    hint = SETTINGS.get(key, hint_of(key, schema))
    if hint is not None and not fits("", hint) and not value.startswith(("[", "{")):
        return refused(key, hint, repr(value))
    if value.startswith("["):
        items = ",".join(_item(item) for item in _split(value.strip("[]")))
        return f'{word!r} cannot be read; quote the items, and the whole for the shell: "{key}=[{items}]"'
    return f'{word!r} cannot be read; quote the value, and the whole for the shell: "{key}={quote(value)}"'
