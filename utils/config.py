"""Frozen dataclasses to command-line flags and back.

A flag is a field made by `flag`; a nested dataclass adds its name as a prefix, so that one
OptimConfig gives --weight_lr, --score_lr and so on.
"""

import argparse
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
    many: bool = False,
    identity: bool = True,
) -> Any:
    """A dataclass field that is a flag, with all its facts.

    `parse` turns the typed text into the value and raises ValueError with the reason when it
    cannot; by default it is the type of the default. `bare` is the value of the flag typed without
    one, where that is allowed; `many` allows several values, which are a tuple. `identity` says
    whether another value makes another run: not that of a flag which changes no number, or which
    has a folder name of its own (seed, densities).
    """
    parse = parse or (str if default is None else type(default))
    facts = {"help": help, "parse": parse, "choices": choices, "group": group, "bare": bare}
    facts |= {"many": many, "identity": identity}
    return dataclasses.field(default=default, metadata=facts)


def nested(prefix: str, default: Any, group: str, identity: bool = True) -> Any:
    """A dataclass field that holds other flags, named with `prefix`; the facts hold for each."""
    facts = {"prefix": prefix, "group": group, "identity": identity}
    return dataclasses.field(default=default, metadata=facts)


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


def path_or_word(text: str) -> str:
    """A parser for paths, and for words in their place: `~` is the home folder."""
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(f"{text!r}: there is no such home folder (./~ is a file called ~)")
    return word(path)


def word(text: str) -> str:
    """A parser for names and paths that may be `none`; the authors' spelling is `None`."""
    return "none" if text == "None" else text


def _flags(config: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Full name, value and facts of every flag of a config."""
    for field in dataclasses.fields(config):
        value, facts = getattr(config, field.name), field.metadata
        if "prefix" not in facts:
            yield field.name, value, facts
            continue
        for name, inner, own in _flags(value):
            merged = {"group": own["group"] or facts["group"]}
            merged["identity"] = own["identity"] and facts["identity"]
            yield facts["prefix"] + name, inner, {**own, **merged}


def flags_of(config: Any) -> dict[str, Mapping[str, Any]]:
    """The facts of every flag of a config, by full name."""
    return {name: facts for name, _, facts in _flags(config)}


def flatten(config: Any) -> dict[str, Any]:
    """A config as {flag name: value}."""
    return {name: value for name, value, _ in _flags(config)}


def plain(value: Any) -> Any:
    """A value of a flag as config.json holds it."""
    return list(value) if isinstance(value, tuple) else value


def replace_flags(config: T, values: Mapping[str, Any]) -> T:
    """A copy of `config` with the named flags set; nested ones are named with their prefix."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        prefix = field.metadata.get("prefix")
        if prefix is not None:
            inner = {n[len(prefix) :]: v for n, v in values.items() if n.startswith(prefix)}
            changes[field.name] = replace_flags(getattr(config, field.name), inner)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(config, **changes)


def check_flags(defaults: Any, values: Mapping[str, Any]) -> None:
    """Raises ValueError when one of `values`, read from a file, could not have been typed."""
    for name, default, facts in _flags(defaults):
        if name in values and not _typable(facts, default, values[name]):
            raise ValueError(f"no such value of --{name}: {values[name]!r}")


def _typable(facts: Mapping[str, Any], default: Any, value: Any) -> bool:
    if isinstance(default, bool) or value is None:
        return isinstance(value, bool) or value is default
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    try:
        meant = path_or_word(value) if facts["parse"] is path_or_word else value
        return _parser_of(facts)(text) == meant
    except (ValueError, argparse.ArgumentTypeError):
        return False


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are UsageError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message: str) -> None:
        raise UsageError(f"{message} (--help lists the flags)")


def parse_flags(defaults: T, argv: Sequence[str], **parser_options: Any) -> tuple[T, set[str]]:
    """Parse `argv` over the values of `defaults`; hyphens may stand for underscores.

    Returns the config and the names of the flags that were typed. Raises UsageError with the
    offending flag and, for a misspelt one, the nearest name.
    """
    parser, groups = Parser(**parser_options), {}
    for name, default, facts in _flags(defaults):
        title = facts["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_argument(groups[title], name, facts, default)
    known, unknown = parser.parse_known_args(map(_underscored, argv))
    if unknown:
        raise UsageError(_unknown_flag(unknown[0], defaults))
    typed = {n: tuple(v) if isinstance(v, list) else v for n, v in vars(known).items()}
    return replace_flags(defaults, typed), set(typed)


def _add_argument(group: Any, name: str, facts: Mapping[str, Any], default: Any) -> None:
    """Add one flag. Defaults stay out of argparse, so that a typed value is recognisable."""
    shown = "" if default is None else f" (default: {_shown(default)})"
    if default is True:
        shown = f" (default: yes; --no_{name} for no)"
    text = (facts["help"] + shown).replace("%", "%%")
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text, "dest": name}
    if isinstance(default, bool):
        group.add_argument(f"--{name}", action="store_true", **options)
        options["help"] = argparse.SUPPRESS
        group.add_argument(f"--no_{name}", action="store_false", **options)
        return
    choices = facts["choices"]
    options["type"] = _parser_of(facts)
    options["metavar"] = f"{{{','.join(choices)}}}" if choices else name.rsplit("_")[-1].upper()
    if facts["bare"] is not None:
        options |= {"nargs": "?", "const": facts["bare"]}
    if facts["many"]:
        options["nargs"] = "+"
    group.add_argument(f"--{name}", **options)


def _shown(default: Any) -> str:
    if default is False:
        return "no"
    return ",".join(f"{v:g}" for v in default) if isinstance(default, tuple) else str(default)


def _parser_of(facts: Mapping[str, Any]) -> Callable[[str], Any]:
    def parse_text(text: str) -> Any:
        if not text.strip() and facts["bare"] is None:  # a variable of a script that is not set
            raise argparse.ArgumentTypeError("it is empty: give a value, or leave the flag out")
        try:
            return _choose(text, facts["choices"]) if facts["choices"] else facts["parse"](text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_text


def _choose(text: str, choices: Collection[str]) -> str:
    """One of the choices; the authors' `None` is `none`."""
    for candidate in (text, text.lower()):
        if candidate in choices:
            return candidate
    raise ValueError(not_one_of(text, choices))


def not_one_of(text: str, choices: Collection[str], also: str = "") -> str:
    """A message on a misspelt value: the nearest choice, if one is near, and all of them."""
    near = difflib.get_close_matches(text.lower(), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{text!r}: {hint}choose from {', '.join(choices)}{also}"


def _underscored(word: str) -> str:
    """--batch-size=3 as --batch_size=3; a value after = stays. UsageError for `--`."""
    name, equals, value = word.partition("=")
    if value == "--":  # which argparse takes for an end, and breaks down
        raise UsageError(f"argument {name}: {value} is no value (--help lists the flags)")
    return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _unknown_flag(word: str, defaults: Any) -> str:
    """The message on an unknown flag: it names those that are near in spelling or in meaning."""
    typed, flags = word.partition("=")[0].lstrip("-").lower(), flags_of(defaults)
    switches = [n for n, value in flatten(defaults).items() if isinstance(value, bool)]
    names = [f"no_{name}" for name in switches] if typed.startswith("no_") else flags
    near = difflib.get_close_matches(typed, names, n=1)
    near = near or [name for name in flags if typed in name.split("_")]
    near = near or [name for name in flags if typed in re.findall(r"\w+", flags[name]["help"])]
    hint = f"; did you mean --{' or --'.join(near)}?" if near else " (--help lists the flags)"
    return f"unknown argument {word!r}{hint}"
