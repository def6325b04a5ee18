"""The dense network that is trained first: --from_dense starts there, --distill learns from it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import sleep

import torch
from torch import Tensor

from data import Data
from models import PromptedClassifier
from models.backbones import runs_code
from models.widths import Widths
from program.checkpoints import read_checkpoint
from program.evaluation import put_in_order
from program.flags import PruneConfig
from program.folder import run_folder
from program.plan import passes_of
from program.settings import Config, complete
from pruning.stage import Teach
from runfolder.level import MODEL
from runfolder.own import InUse, lock
from runfolder.shared import PAUSE
from runfolder.stage_log import level_name
from utils.checkpoint import has_meta, load_model, read_meta
from utils.config import flatten, replace_flags
from utils.errors import DataError, UsageError, VPNsError, note
from utils.files import read_object
from utils.together import from_first

Run = Callable[[Config], object]
# Flags, by how their names begin, that a dense network without a prompt does not depend on.
APART = ("score_", "weight_vp_", "pad_", "mask_", "output_", "prompt_", "distill_")


def start_of(config: Config, dense: Path | None) -> tuple[dict[str, Tensor], Widths] | None:
    """Weights and widths that each level starts from; None without --from_dense."""
    if not config.method.from_dense:
        return None
    tensors, meta = from_first(partial(load_model, dense))
    return tensors, meta.get("widths") or {}


def teacher_of(
    config: Config, dense: Path | None, data: Data, device: torch.device
) -> Teach | None:
    """What gives logits (B, C) for images (B, 3, h, h); None without --distill.

    It reads the file of --distill, or of the `dense` network. Raises VPNsError for a file that is
    refused, UsageError for other classes.
    """
    source = config.method.distill
    if source is None:
        return None
    path = Path(source or dense)
    model = from_first(partial(_read, config, path))  # the others may have no such file
    if model.classes != len(data.classes):
        raise UsageError(f"--distill {path} tells {model.classes} classes apart, not "
                         f"{len(data.classes)}")
    for line in [] if config.run.classes_by_position else put_in_order(model, data.classes):
        note(f"{path}: {line}")
    model.to(device).eval().requires_grad_(False)
    model.use(config.precision)

    @torch.no_grad()
    def teach(images: Tensor) -> Tensor:
        return model(images)

    return teach


def _read(config: Config, path: Path) -> PromptedClassifier:
    if path.is_file() and not has_meta(path):
        raise VPNsError(f"--distill {path} is no model.safetensors of a run")
    name, own = str(read_meta(path).get("network")), config.network.network
    if runs_code(name) and name != own:
        raise UsageError(f"--distill {path} was made with your code {name!r}, which runs only in "
                         f"a run with --network {name}")
    return read_checkpoint(path, {"network": name} if name == own else {}).model


def dense_config(config: Config, folder: Path) -> Config:
    """The run of --prune_method dense with the passes of a level, whatever prunes in `folder`."""
    place = {"save_dir": str(folder.parents[2]), "experiment_name": folder.parents[1].name}
    own = replace(config.run, resume="auto", wandb=None, **place)
    method = PruneConfig(
        prune_method="dense", epochs=passes_of(config, 0),
        label_mapping_mode=config.method.label_mapping_mode,
    )  # fmt: skip
    usual = {n: value for n, value in flatten(Config()).items() if n.startswith(APART)}
    return complete(replace_flags(replace(config, run=own, method=method), usual))


def dense_network(config: Config, own: Path, data: Data, run: Run) -> Path | None:
    """The model file of the dense network of a run in folder `own`; None if no flag needs it.

    It is an ordinary run of the same experiment, which `run` makes, or makes again, unless it is
    good. Another run that makes it is waited for; the threads of this one stay. Raises DataError
    for a dense network of other images.
    """
    if not (config.method.from_dense or config.method.distill == ""):
        return None
    dense = dense_config(config, own)
    folder, threads, waits = run_folder(dense), torch.get_num_threads(), False
    path = folder / level_name(1.0) / MODEL
    while not from_first(partial(_is_good, folder, path, data.fingerprint)):
        try:
            if holder := from_first(partial(_holder, folder)):
                raise InUse(holder)
            run(dense)
            break
        except InUse as error:
            if not waits:
                note(f"another run trains the dense network, which is waited for ({error})")
            waits = True
            sleep(PAUSE)
        finally:
            torch.set_num_threads(threads)
    return path


def _is_good(folder: Path, path: Path, fingerprint: str) -> bool:
    """Whether the dense run has ended well. Raises DataError when its images were others."""
    if read_object(folder / "run.json").get("state") != "done" or not path.exists():
        return False
    if read_object(folder / "env.json").get("data", fingerprint) != fingerprint:
        raise DataError(f"{folder}, the dense network, was trained on other images: move it away, "
                        "and another one is trained")
    try:
        load_model(path)
    except VPNsError:
        return False
    return True


def _holder(folder: Path) -> str:
    """Who holds the lock of a run; '' for nobody. All processes of this run hear the same."""
    if folder.exists():
        try:
            lock(folder / "run.lock").close()
        except InUse as error:
            return str(error)
    return ""
