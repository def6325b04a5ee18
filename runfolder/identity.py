"""Which run a command line means: the folder named by its hash, and how it differs from others."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runfolder.run import lock
from utils.config import not_one_of
from utils.errors import UsageError
from utils.files import read_object

# Flags that change no number of a run, and the seed and densities, which have their own names.
NOT_IDENTITY = frozenset(
    ("seed", "density_list", "experiment_name", "save_dir", "data", "workers", "cache_gb")
    + ("download", "device", "gpu", "print_freq", "eval_every", "keep_states", "resume")
    + ("evaluate", "density", "dry_run", "debug", "preset", "check_data", "save_every")
    + ("save_minutes",)
)


def identity(flags: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that make this run another one than the default run."""
    return {
        name: value
        for name, value in flags.items()
        if name not in NOT_IDENTITY and value != defaults[name]
    }


def model_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that a model file keeps: all that change numbers, and the seed.

    No paths, devices or neighbouring densities: the same model is the same file anywhere.
    """
    return {n: value for n, value in flags.items() if n == "seed" or n not in NOT_IDENTITY}


def config_hash(chosen: Mapping[str, Any]) -> str:
    """8 hex digits of the identity."""
    text = json.dumps(chosen, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The flags in which two runs differ, each as `name old -> new`."""
    names = sorted({*before, *now} - NOT_IDENTITY)
    pairs = [(name, before.get(name), now.get(name)) for name in names]
    return [f"{name} {old} -> {new}" for name, old, new in pairs if _plain(old) != _plain(new)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def nearest(folder: Path, flags: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """A line on the sibling run of the same seed with the fewest other flags, if there is one.

    A flag that is younger than a run has its default there.
    """
    seed = folder.name.split("-")[0]
    others = []
    for path in folder.parent.glob(f"{seed}-*/config.json"):
        before = {**defaults, **read_object(path)}
        changes = differences(before, flags)
        if path.parent != folder and changes:
            others.append((len(changes), ", ".join(changes), path.parent.name))
    if not others:
        return None
    _, changes, name = min(others)
    return f"a new run; the nearest one, {name}, differs in: {changes}"


def resumed_folder(path: str, flags: Mapping[str, Any], defaults: Mapping[str, Any]) -> Path:
    """The run folder that `--resume PATH` means: PATH itself or the one that holds it.

    A flag that is younger than the run has its default there.
    Raises UsageError when there is no run, or it ran with other hyper-parameters.
    """
    start = Path(path)
    for folder in (start, *start.parents[:2]):
        before = read_object(folder / "config.json")
        if before:
            before = {**defaults, **before}
            changes = differences(before, flags)
            if before.get("seed") != flags["seed"]:
                changes = [f"seed {before.get('seed')} -> {flags['seed']}", *changes]
            if changes:
                raise UsageError(f"{folder} ran with other hyper-parameters: {', '.join(changes)}")
            return folder
    near = not_one_of(path, ("auto", "none"), " or the path of a run folder")
    raise UsageError(f"--resume {path}: no run folder there (no config.json); {near}")


def set_aside(folder: Path) -> Path | None:
    """Rename an existing run folder, so that a new run starts afresh and nothing is deleted.

    Raises VPNsError when another process works in it.
    """
    if not folder.exists():
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    with lock(folder / "run.lock"):
        os.rename(folder, aside)
    return aside
