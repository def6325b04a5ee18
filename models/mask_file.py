"""Masks in files: a search starts from somebody's mask, on request with the weights beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.artifact import masks_of
from models.classifier import PromptedClassifier
from models.foreign_masks import threshold_masks
from models.foreign_network import MASK, SCORE, masks_in, plain, scores_in
from models.pretrained import misfit
from utils.errors import UsageError, VPNsError
from utils.model_file import read_meta, unpack_tensor
from utils.tensors import read_tensors, understood


@dataclass(frozen=True)
class MaskFile:
    """Masks (bool by parameter name), the network's state dict, and the prompt's program if any."""

    masks: dict[str, Tensor]
    state: dict[str, Tensor]
    program: Tensor | None


def read_mask_file(path: Path, density: float | None) -> MaskFile:
    """A model file of ours, or tensors with `weight_mask`/`weight_orig` or `popup_scores` keys.

    The latter may lie at the top or under `state_dict`; scores need their density. Raises
    VPNsError when the file is damaged or holds no mask.
    """
    tensors = read_tensors(path)
    with understood(path):
        if path.suffix == ".safetensors" and not any(k.endswith((SCORE, MASK)) for k in tensors):
            meta = read_meta(path)
            program = meta["program"] and unpack_tensor(meta["program"])
            return MaskFile(masks_of(tensors, meta), tensors, program)
        return _read_foreign(path, tensors, density)


def _read_foreign(path: Path, file: Mapping[str, Any], density: float | None) -> MaskFile:
    raw = file.get("state_dict", file)
    raw = {k: v for k, v in raw.items() if isinstance(v, Tensor)}
    scores, masks = scores_in(raw), masks_in(raw)
    if scores and density is None:
        raise UsageError(f"{path} holds scores: name their density, one, in --density_list")
    if scores:
        masks = threshold_masks(scores, density)
    if not masks:
        raise VPNsError(f"{path} holds no mask: no weight_mask and no popup_scores")
    program = (file.get("visual_prompt") or {}).get("program")
    if not isinstance(program, Tensor | None):
        raise TypeError(f"the prompt is a {type(program).__name__}")
    return MaskFile({name: mask != 0 for name, mask in masks.items()}, plain(raw), program)


@torch.no_grad()
def start_from(model: PromptedClassifier, file: MaskFile, path: Path) -> None:
    """Put weights, BatchNorm and prompt of the file into `model`, in place.

    Raises VPNsError when they do not fit.
    """
    problem = misfit(model.network.state_dict(), file.state)
    if problem:
        raise VPNsError(f"{path} does not fit the network: {problem}")
    model.network.load_state_dict(file.state)
    if model.prompt is None or file.program is None:
        return
    if file.program.shape != model.prompt.program.shape:
        size = file.program.shape[-1]
        raise VPNsError(f"{path} has a prompt of {size} pixels: use --output_size {size}")
    model.prompt.program.copy_(file.program)
