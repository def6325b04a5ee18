"""Frozen dataclasses to command-line flags and back.

A flag is a field made by `flag`; a nested dataclass adds its name as a prefix, so that one
OptimConfig gives --weight_lr, --score_lr and so on.
"""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from utils.errors import UsageError

T = TypeVar("T")


def flag(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] | None = None,
    choices: Collection[str] | None = None,
    group: str | None = None,
    bare: str | None = None,
) -> Any:
    """A dataclass field that is a flag.

    `parse` turns the typed text into the value and raises ValueError with the reason when it
    cannot; it is derived from the type of the default where it is not given. `bare` is the value
    of the flag typed without one, where that is allowed.
    """
    metadata = {"help": help, "parse": parse, "choices": choices, "group": group, "bare": bare}
    return dataclasses.field(default=default, metadata=metadata)


def nested(prefix: str, default: Any, group: str) -> Any:
    """A dataclass field that holds another dataclass of flags, each named with `prefix`."""
    return dataclasses.field(default=default, metadata={"prefix": prefix, "group": group})


def number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], Any]:
    """A parser for int or float values within [low, high]; NaN and infinity are refused."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            noun = "an integer" if kind is int else "a number"
            raise ValueError(f"{text!r} is not {noun}") from None
        if not low <= value <= high or value == float("inf"):
            limit = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
            raise ValueError(f"{text} is out of range: it must be {limit}")
        return value

    return parse


def word(text: str) -> str:
    """A parser for names and paths that may be `none`; the authors' spelling is `None`."""
    return "none" if text == "None" else text


def flags_of(config: Any) -> dict[str, Mapping[str, Any]]:
    """What `flag` said of every flag of a config (class or instance), by full name."""
    found: dict[str, Mapping[str, Any]] = {}
    for field in dataclasses.fields(config):
        if "prefix" not in field.metadata:
            found[field.name] = field.metadata
            continue
        prefix, group = field.metadata["prefix"], field.metadata["group"]
        for name, leaf in flags_of(field.default).items():
            found[prefix + name] = {**leaf, "group": leaf["group"] or group}
    return found


def flatten(config: Any) -> dict[str, Any]:
    """A config as {flag name: value}."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "prefix" in field.metadata:
            prefix = field.metadata["prefix"]
            values.update({prefix + name: inner for name, inner in flatten(value).items()})
        else:
            values[field.name] = value
    return values


def replace_flags(config: T, values: dict[str, Any]) -> T:
    """A copy of `config` with the named flags set; nested ones are named with their prefix."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if "prefix" in field.metadata:
            prefix = field.metadata["prefix"]
            inner = getattr(config, field.name)
            own = {n: values[prefix + n] for n in flags_of(inner) if prefix + n in values}
            changes[field.name] = replace_flags(inner, own) if own else inner
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(config, **changes)


def check_flags(defaults: Any, values: Mapping[str, Any]) -> None:
    """Raises ValueError when one of `values`, read from a file, could not have been typed."""
    flags, own = flags_of(defaults), flatten(defaults)
    wrong = [n for n, value in values.items() if not _typable(flags[n], own[n], value)]
    if wrong:
        raise ValueError(f"no such value of --{wrong[0]}: {values[wrong[0]]!r}")


def _typable(about: Mapping[str, Any], default: Any, value: Any) -> bool:
    if isinstance(default, bool) or value is None:
        return isinstance(value, bool) or value is default
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    try:
        return _parser_of(about, default)(text) == value
    except (ValueError, argparse.ArgumentTypeError):
        return False


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with hyphens for underscores and a nearest-name hint."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message: str) -> None:
        raise UsageError(f"{message} (--help lists the flags)")


def parse_flags(defaults: T, argv: Sequence[str], **parser_options: Any) -> tuple[T, set[str]]:
    """Parse `argv` over the values of `defaults`.

    Returns the config and the names of the flags that were typed. Raises UsageError with the
    offending flag and, for a misspelt one, the nearest name.
    """
    parser, flags = Parser(**parser_options), flags_of(defaults)
    groups: dict[str, Any] = {}
    for name, about in flags.items():
        title = about["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_argument(groups[title], name, about, flatten(defaults)[name])
    known, unknown = parser.parse_known_args(_underscored(argv))
    if unknown:
        switches = [n for n, value in flatten(defaults).items() if isinstance(value, bool)]
        raise UsageError(_unknown_flag(unknown[0], flags, switches))
    typed = vars(known)
    return replace_flags(defaults, typed), set(typed)


def _add_argument(group: Any, name: str, about: Mapping[str, Any], default: Any) -> None:
    """Add one flag. Defaults stay out of argparse, so that a typed value is recognisable."""
    shown = "" if default is None else f" (default: {_shown(default)})"
    if default is True:
        shown = f" (default: yes; --no_{name} for no)"
    text = (about["help"] + shown).replace("%", "%%")
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text, "dest": name}
    if isinstance(default, bool):
        group.add_argument(f"--{name}", action="store_true", **options)
        group.add_argument(
            f"--no_{name}", action="store_false", **options | {"help": argparse.SUPPRESS}
        )
        return
    choices = about["choices"]
    options["type"] = _parser_of(about, default)
    options["metavar"] = f"{{{','.join(choices)}}}" if choices else name.rsplit("_")[-1].upper()
    if about["bare"] is not None:
        options |= {"nargs": "?", "const": about["bare"]}
    group.add_argument(f"--{name}", **options)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ",".join(f"{v:g}" for v in default) if isinstance(default, tuple) else str(default)


def _parser_of(about: Mapping[str, Any], default: Any) -> Callable[[str], Any]:
    choices = about["choices"]
    parse = about["parse"] or (str if default is None else type(default))

    def parse_text(text: str) -> Any:
        if not text.strip() and about["bare"] is None:  # a variable of a script that is not set
            raise argparse.ArgumentTypeError("it is empty: give a value, or leave the flag out")
        if choices:
            return _choose(text, choices)
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_text


def _choose(text: str, choices: Collection[str]) -> str:
    """One of the choices; the authors' `None` is `none`."""
    for candidate in (text, text.lower()):
        if candidate in choices:
            return candidate
    raise argparse.ArgumentTypeError(not_one_of(text, choices))


def not_one_of(text: str, choices: Collection[str], also: str = "") -> str:
    """A message on a misspelt value: the nearest choice, if one is near, and all of them."""
    near = difflib.get_close_matches(text.lower(), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{text!r}: {hint}choose from {', '.join(choices)}{also}"


def _underscored(argv: Sequence[str]) -> list[str]:
    """--batch-size as --batch_size (values after = are left alone)."""
    def spell(word: str) -> str:
        name, equals, value = word.partition("=")
        return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word

    return [spell(word) for word in argv]


def _unknown_flag(word: str, flags: dict[str, Any], switches: Collection[str]) -> str:
    typed = word.partition("=")[0].lstrip("-").lower()
    names = [f"no_{name}" for name in switches] if typed.startswith("no_") else flags
    near = difflib.get_close_matches(typed, names, n=1)
    near = near or [name for name in flags if typed in name.split("_")]
    near = near or [name for name in flags if typed in re.findall(r"\w+", flags[name]["help"])]
    hint = f"; did you mean --{' or --'.join(near)}?" if near else " (--help lists the flags)"
    return f"unknown argument {word!r}{hint}"
