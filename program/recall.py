"""Settings that a run wrote down, read back for another one (`--config`)."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from models.backbones import runs_code
from utils.config import check_flags, flatten
from utils.errors import UsageError, message_of
from utils.files import read_small


def settings_in(path: Path, defaults: Any, typed: Collection[str]) -> dict[str, Any]:
    """The flags of a config.json, of the output of --dry_run, or of a YAML file with either.

    What is null there is left open. Raises UsageError for a file that cannot be read, a flag that
    there is not, a value that could not have been typed, and a network that would run code, unless
    `typed` has it.
    """
    types = flatten(defaults)
    try:
        given = {n: value for n, value in _content(path).items() if value is not None}
        if unknown := [name for name in given if name not in types]:
            raise ValueError(f"there is no flag {unknown[0]!r}")
        values = {name: _as_typed(types[name], value) for name, value in given.items()}
        check_flags(defaults, values)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except Exception as error:  # of a parser of YAML too
        raise UsageError(f"--config {path} has no settings of ours: {message_of(error)}") from error
    if "network" not in typed and runs_code(values.get("network", "")):
        raise UsageError(f"--config {path} has a network of somebody's code: type --network "
                         f"{values['network']} if you trust it")
    return values


def _content(path: Path) -> dict[str, Any]:
    text = read_small(path)
    if path.suffix in (".yaml", ".yml"):
        from yaml import safe_load as loads  # PyYAML, which comes with timm
    else:
        from json import loads
    content = loads(text)
    inside = content.get("config")
    return inside if isinstance(inside, dict) else content


def _as_typed(default: Any, value: Any) -> Any:
    """A value as a flag would have made it: lists are tuples, 1 may stand for 1.0."""
    if isinstance(value, list):
        return tuple(value)
    return float(value) if isinstance(default, float) and type(value) is int else value
