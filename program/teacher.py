"""`--distill`: the network whose logits all training learns from, beside the labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import torch
from torch import Tensor

from models.backbones import runs_code
from program.checkpoints import read_checkpoint
from program.evaluation import put_in_order
from program.flags import PruneConfig
from program.folder import default_flags, run_folder
from program.plan import passes_of
from program.settings import Config, complete
from pruning.stage import Teach
from runfolder.level import MODEL
from runfolder.own import InUse
from runfolder.shared import PAUSE
from runfolder.stage_log import level_name
from utils.checkpoint import has_meta
from utils.config import flatten, replace_flags
from utils.errors import UsageError, VPNsError, note
from utils.together import from_first

Values = Mapping[str, Any]
# Flags, by how their names begin, that a dense network without a prompt does not depend on.
APART = ("score_", "weight_vp_", "pad_", "mask_", "output_", "prompt_", "distill_")


def teacher_of(
    config: Config, classes: Sequence[str], device: torch.device, run: Callable[[Config], Values]
) -> Teach | None:
    """What gives logits (B, C) for images (B, 3, h, h); None without --distill.

    It reads the file of --distill, or the dense network that `run` trains first, an ordinary run
    of the experiment. Raises VPNsError for a file that is refused, UsageError for other classes.
    """
    source = config.method.distill
    if source is None:
        return None
    path = Path(source or dense_network(config, run))
    if not has_meta(path):
        raise VPNsError(f"--distill {path} is no model.safetensors of a run")
    name = config.network.network
    model = read_checkpoint(path, {"network": name} if runs_code(name) else {}).model
    if model.classes != len(classes):
        raise UsageError(f"--distill {path} tells {model.classes} classes apart, not "
                         f"{len(classes)}")
    for line in put_in_order(model, classes):
        note(f"{path}: {line}")
    model.to(device).eval().requires_grad_(False)
    model.use(config.precision)

    @torch.no_grad()
    def teach(images: Tensor) -> Tensor:
        return model(images)

    return teach


def dense_network(config: Config, run: Callable[[Config], Values]) -> Path:
    """The model file of the dense run with the passes of a level, which is made if it is missing.

    Another run that makes it is waited for.
    """
    dense, waits = dense_config(config), False
    path = run_folder(dense) / level_name(1.0) / MODEL
    while not from_first(path.exists):
        try:
            run(dense)
        except InUse as error:
            if not waits:
                note(f"another run trains the network of --distill, which is waited for ({error})")
            waits = True
            sleep(PAUSE)
    return path


def dense_config(config: Config) -> Config:
    """The dense run that `--prune_method dense --epochs PASSES` asks for, whatever prunes here."""
    method = PruneConfig(
        prune_method="dense", epochs=passes_of(config, 0),
        label_mapping_mode=config.method.label_mapping_mode,
    )  # fmt: skip
    plain = replace(config, method=method, run=replace(config.run, resume="auto"))
    flags = default_flags(complete(plain))
    apart = {n: flags[n] for n in flatten(config) if n.startswith(APART) and n in flags}
    return complete(replace_flags(plain, apart))
