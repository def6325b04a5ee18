"""Masks in files: a search starts from somebody's mask, on request with the weights beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.artifact import masks_of
from models.classifier import PromptedClassifier
from models.pretrained import misfit
from utils.checkpoint import has_meta, read_meta, unpack_tensor
from utils.counts import pruned_count
from utils.errors import UsageError, VPNsError
from utils.tensors import is_safetensors, read_tensors, understood

# Scores lie beside a layer's weight; torch.nn.utils.prune puts its suffixes behind the weight.
SCORE, ORIG, MASK = ".popup_scores", "weight_orig", "weight_mask"


class MaskFile(NamedTuple):
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
        if is_safetensors(path) and has_meta(path):
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


def plain(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own parameters: scores and masks left out, weight_orig called weight."""
    return {
        key.removesuffix("_orig") if key.endswith(ORIG) else key: value.detach().contiguous()
        for key, value in raw.items()
        if not key.endswith((SCORE, MASK))
    }


def scores_in(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores by parameter name."""
    return {f"{k.removesuffix(SCORE)}.weight": v for k, v in raw.items() if k.endswith(SCORE)}


def masks_in(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks as the file stores them, by parameter name."""
    return {key.removesuffix("_mask"): value for key, value in raw.items() if key.endswith(MASK)}


def threshold_masks(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Keep |score| > tau, tau the int((1 - density) * N)-th smallest of all; bool by name.

    This is the authors' strict rule (METHODS section 1.3), which prunes ties; `keep_top` of our own
    searches differs from it in the ties only.
    """
    sizes = torch.cat([score.flatten() for score in scores.values()]).float().abs_()
    pruned = pruned_count(len(sizes), density)
    if pruned < 1:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    tau = float(np.partition(sizes.numpy(), pruned - 1)[pruned - 1])
    return {name: score.abs() > tau for name, score in scores.items()}


@torch.no_grad()
def start_from(model: PromptedClassifier, file: MaskFile, path: Path) -> None:
    """Put weights, BatchNorm and prompt of the file into `model`, in place.

    Raises VPNsError when they do not fit.
    """
    problem = misfit(model.network.state_dict(), file.state)
    if problem:
        raise VPNsError(f"{path} does not fit the network: {problem}")
    with understood(path):
        model.network.load_state_dict(file.state)
        if model.prompt is None or file.program is None:
            return
        _, size, _ = file.program.shape
        if size != model.prompt.output_size:
            raise VPNsError(f"{path} has a prompt of {size} pixels: use --output_size {size}")
        if file.program.is_complex() or file.program.shape != model.prompt.program.shape:
            raise ValueError(f"a prompt of {file.program.dtype} {tuple(file.program.shape)}")
        model.prompt.program.copy_(file.program)
