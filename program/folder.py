"""Which folder a run has, and which results it may share with others."""

from pathlib import Path
from typing import Any

from data import SPECS
from models.backbones import weights_file
from program.settings import Config, complete
from pruning import METHODS
from runfolder.identity import (
    NOT_IDENTITY,
    config_hash,
    identity,
    nearest,
    resumed_folder,
    set_aside,
)
from utils.config import flatten, replace_flags
from utils.errors import VPNsError
from utils.files import sha256_file


def run_folder(config: Config) -> Path:
    """SAVE_DIR/EXPERIMENT/NETWORK-DATASET-METHOD/seed7-<hash>, or the one --resume names."""
    flags = flatten(config)
    if config.run.resume not in ("auto", "none"):
        return resumed_folder(config.run.resume, flags, default_flags(config))
    name = "-".join(flags[n] for n in ("network", "dataset", "prune_method"))
    chosen = identity(flags, default_flags(config))
    if METHODS[config.method.prune_method].chained:
        chosen["density_list"] = config.levels
    if SPECS[config.data.dataset].classes is None:
        chosen["data"] = str(Path(config.data.data or "").resolve())  # the images are the dataset
    named = weights_file(config.network.network, config.network.weights) is None
    for source in ("init_mask", "init_from", *(() if named else ("weights",))):
        if chosen.get(source):
            chosen[source] = content_of(Path(chosen[source]).expanduser())
    digest = config_hash(chosen)
    parent = Path(config.run.save_dir, config.run.experiment_name, name)
    return parent / f"seed{config.run.seed}-{digest}"


def content_of(path: Path) -> str:
    """SHA-256 of a file that is a setting: its content counts, not its name."""
    if not path.is_file():
        raise VPNsError(f"{path} does not exist")
    return sha256_file(path)


def announce(config: Config, folder: Path) -> None:
    """Set an earlier run aside for --resume none; say what is ignored and which run is nearest."""
    if config.ignored:
        only = ", ".join(f"{density:g}" for density in config.ignored)
        print(f"note: {config.method.prune_method} makes density 1 only; ignored: {only}")
    if config.run.resume == "none" and (aside := set_aside(folder)):
        print(f"note: the earlier run is now {aside}")
    if folder.exists():
        return
    line = nearest(folder, flatten(config), default_flags(config))
    if line:
        print(f"note: {line}")


def default_flags(config: Config) -> dict[str, Any]:
    """The completed defaults for the same network, dataset and method."""
    flags = flatten(config)
    same = {name: flags[name] for name in ("network", "dataset", "prune_method")}
    # These three count as chosen, so that they are part of what makes a run itself.
    return flatten(complete(replace_flags(Config(), same))) | dict.fromkeys(same)


def shared_settings(config: Config, fingerprint: str) -> dict[str, Any]:
    """What a training phase of the weights in the search depends on, whatever the method.

    Beside the model that it starts from and its first label mapping.
    """
    own = ["prune_method", "prune_mode", "preset", "init_mask", "init_from", "post_prompt"]
    own += ["min_layer_density"]
    own += [name for name in flatten(config) if name.startswith(("weight_vp_", "score_"))]
    prompted, remapped = config.prompted.search, config.maps_each_epoch and config.maps_with_prompt
    if not (prompted or remapped):
        own += ["prompt_method", "output_size", "pad_size", "mask_size"]
    flags = {n: v for n, v in flatten(config).items() if n not in (*own, *NOT_IDENTITY)}
    return flags | {
        "seed": config.run.seed,
        "views": config.views.search,
        "data": fingerprint,
        "score_vp": vars(config.score_vp) if prompted else None,
        "remapped_with_prompt": remapped,
    }
