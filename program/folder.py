"""Which folder a run has, how runs differ, and which results they may share."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data import SPECS, Data, load_data
from models.backbones import weights_file
from program.flags import DENSITIES
from program.given import check_given
from program.plan import check_fit, passes_of, size_notes
from program.settings import NOT_IDENTITY, Config, complete
from pruning import METHODS
from runfolder.level import Level
from runfolder.own import lock, open_to_all, refuse_links
from runfolder.shared import Shared
from runfolder.stage_log import require_progress
from runfolder.states import States
from utils.config import flatten, not_one_of, plain, replace_flags
from utils.errors import UsageError, VPNsError, note
from utils.files import read_object, sha256_file
from utils.ranks import world
from utils.tensors import SUFFIXES, read_tensors, understood
from utils.together import from_first

Flags = Mapping[str, Any]
NO_PATH = ("auto", "none")  # of --resume


def run_folder(config: Config) -> Path:
    """The folder of a run; its images may have lain elsewhere when it began, which a note says."""
    folder, moved = from_first(partial(_folders, config))
    if not moved:
        return folder
    own = config.data
    found = load_data(own, own.input_size, own.batch_size, torch.device("cpu")).fingerprint

    def newest() -> Path | None:  # of the runs that began with these images
        same = [run for run in moved if read_object(run / "env.json").get("data") == found]
        return max(same, key=lambda run: (run / "env.json").stat().st_mtime, default=None)

    old = from_first(newest)
    if old:
        note(f"{old.name} goes on, whose images lay in {read_object(old / 'config.json')['data']}; "
             f"they are those in {own.data}")
    return old or folder


def _folders(config: Config) -> tuple[Path, list[Path]]:
    """Where a run lies, and if nothing is there, runs that differ from it in a path at most.

    SAVE_DIR/EXPERIMENT/NETWORK-DATASET-METHOD/seed7-<hash>, or the folder that --resume names. The
    hash is of the flags that change numbers and differ from their defaults; a user's own images,
    which have no name, count by their path.
    """
    flags, defaults, resume = flatten(config), default_flags(config), config.run.resume
    if resume not in NO_PATH:
        return resumed_folder(resume, flags, defaults), []
    chosen = {n: v for n, v in flags.items() if n not in NOT_IDENTITY and v != defaults[n]}
    if METHODS[config.method.prune_method].chained:
        chosen["density_list"] = config.levels
    named = weights_file(config.network.network, config.network.weights) is None
    for source in ("init_mask", "init_from", "distill", *(() if named else ("weights",))):
        if chosen.get(source):
            path = Path(chosen[source])
            if not path.is_file():
                raise VPNsError(f"{path} does not exist")
            chosen[source] = sha256_file(path)  # its content counts, not its name
    name = "-".join(flags[n] for n in ("network", "dataset", "prune_method")).replace("/", "+")
    parent = Path(config.run.save_dir, config.run.experiment_name, name)
    nameless = SPECS[config.data.dataset].classes is None

    def place(data: object) -> Path:
        path = {"data": str(Path(data or "").resolve())} if nameless else {}
        return parent / f"seed{config.run.seed}-{config_hash(chosen | path)}"

    folder = place(config.data.data)
    if not nameless or folder.exists() or resume == "none":
        return folder, []
    runs = {file.parent: read_object(file).get("data")
            for file in parent.glob(f"seed{config.run.seed}-*/config.json")}  # fmt: skip
    return folder, [run for run, data in runs.items()
                    if isinstance(data, str) and data.isprintable() and place(data) == run]


def default_flags(config: Config) -> dict[str, Any]:
    """The completed defaults for the same network, dataset and method."""
    flags = flatten(config)
    same = {name: flags[name] for name in ("network", "dataset", "prune_method")}
    # These three count as chosen, so that they are part of what makes a run itself.
    return flatten(complete(replace_flags(Config(), same))) | dict.fromkeys(same)


def config_hash(chosen: Flags) -> str:
    """8 hex digits of a hash of the flags."""
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


def changes(before: Flags, now: Flags) -> list[str]:
    """The flags in which two runs differ, each as `name old -> new`."""
    names = sorted({*before, *now} - NOT_IDENTITY)
    pairs = [(name, before.get(name), now.get(name)) for name in names]
    return [f"{name} {'on' if old == '' else old} -> {'on' if new == '' else new}"
            for name, old, new in pairs if plain(old) != plain(new)]  # fmt: skip


def named_folder(config: Config, folder: Path) -> Path:
    """The folder that the user has named and that a run folder lies in."""
    return Path(config.run.save_dir) if config.run.resume in NO_PATH else folder.parent


def prepare(config: Config, folder: Path) -> None:
    """Check what the run begins with; set an earlier run aside for --resume none.

    Says what is ignored and which run is nearest.
    """
    refuse_links(folder, named_folder(config, folder))
    check_resumed(config.run.resume, folder)
    check_given(config, folder)
    check_fit(config)
    if place := open_to_all(folder, named_folder(config, folder)):
        note(f"everybody may write to {place}, and what is put there passes for results: "
             "chmod o-w would keep it yours")
    for line in size_notes(config):
        note(line)
    only = METHODS[config.method.prune_method].only_density
    asked = [f"{density:g}" for density in config.method.density_list if density != only]
    if only is not None and asked and config.method.density_list != DENSITIES:
        ignored = ", ".join(asked)
        note(f"{config.method.prune_method} makes density 1 only; ignored: {ignored}")
    if config.run.resume == "none" and (aside := set_aside(folder)):
        note(f"the earlier run is now {aside}")
    if not folder.exists() and (line := nearest(folder, flatten(config), default_flags(config))):
        note(line)


def set_aside(folder: Path) -> Path | None:
    """Rename an existing run folder. Raises VPNsError when another process works in it."""
    if not folder.exists():
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    with lock(folder / "run.lock"):
        os.rename(folder, aside)
    return aside


def nearest(folder: Path, flags: Flags, defaults: Flags) -> str | None:
    """A line on the sibling run of the same seed with the fewest other flags, if there is one."""
    seed = folder.name.split("-")[0]
    siblings = []
    for path in folder.parent.glob(f"{seed}-*/config.json"):
        changed = changes({**defaults, **read_object(path)}, flags)
        if path.parent != folder and changed:
            siblings.append((len(changed), ", ".join(changed), path.parent.name))
    if not siblings:
        return None
    _, changed, name = min(siblings)
    return f"a new run; the nearest one, {name}, differs in: {changed}"


def resumed_folder(path: str, flags: Flags, defaults: Flags) -> Path:
    """The run folder that `--resume PATH` means: PATH itself or the one that holds it.

    Raises UsageError when there is no run, or it ran with other hyper-parameters.
    """
    start = Path(os.path.abspath(path))  # whose parents are named; links stay what they are
    for folder in (start, *start.parents[:2]):
        before = read_object(folder / "config.json")
        if before:
            before = {**defaults, **before}  # a flag that is younger than the run has its default
            changed = changes(before, flags)
            if before["seed"] != flags["seed"]:
                changed.insert(0, f"seed {before['seed']} -> {flags['seed']}")
            if changed:
                listed = ", ".join(changed)
                raise UsageError(f"{folder} ran with other hyper-parameters: {listed}")
            return folder
    near = not_one_of(path, NO_PATH, " or the path of a run folder")
    raise UsageError(f"--resume {path}: no run folder there (no config.json); {near}")


def check_resumed(resume: str, folder: Path) -> None:
    """Read what `--resume PATH` names: a file of the run, or with its folder the newest states.

    Raises VPNsError for a damaged state, UsageError for one that the run would not go on from.
    """
    if resume in NO_PATH:
        return
    path = Path(resume)
    newest = [state for level in folder.glob("d*") if (state := States(level).newest_path())]
    for file in [path] if path.suffix in SUFFIXES else newest:
        tensors = read_tensors(file)
        if file.suffix != ".safetensors":
            with understood(file):
                require_progress(tensors)
    if path.suffix in (".pt", ".pth") and path.resolve() not in [p.resolve() for p in newest]:
        names = ", ".join(f"{p.parent.name}/{p.name}" for p in newest) or "no state"
        raise UsageError(f"{path} is not where {folder} would go on, which has {names}")


def shared(config: Config, level: Level, data: Data) -> Shared:
    """The results that the runs of an experiment share, such as the dense network of OMP."""
    folder = level.run.folder.parents[1] / "shared"
    return Shared(folder, shared_settings(config, data.fingerprint), level.log, level.folder)


def shared_settings(config: Config, fingerprint: str) -> dict[str, Any]:
    """What training weights in a search depends on, beside the model and its first label map."""
    own = {"prune_method", "prune_mode", "init_mask", "init_from", "post_prompt"}
    own |= {"min_layer_density", *NOT_IDENTITY}
    prompted, remapped = config.prompted.search, config.maps_each_epoch and config.maps_with_prompt
    if not (prompted or remapped):
        own |= {"prompt_method", "output_size", "pad_size", "mask_size"}
    flags = {n: v for n, v in flatten(config).items() if n not in own}
    flags = {n: v for n, v in flags.items() if not n.startswith(("weight_vp_", "score_"))}
    source = config.method.distill
    return flags | {
        "seed": config.run.seed,
        "distill": source and sha256_file(Path(source)),
        "teacher_passes": passes_of(config, 0) if source == "" else None,
        "views": config.views.search,
        "data": fingerprint,
        "score_vp": vars(config.score_vp) if prompted else None,
        "remapped_with_prompt": remapped,
        **({"processes": world()} if world() > 1 else {}),  # each BatchNorm sees a share
    }
