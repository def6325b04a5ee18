"""Masks in files: a search starts from somebody's mask, on request with the weights beside it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.artifact import masks_of
from models.classifier import PromptedClassifier
from models.containers import find_state
from models.pretrained import misfit
from models.rows import Backbone
from utils.checkpoint import has_meta, read_meta, unpack_tensor
from utils.counts import pruned_count
from utils.errors import UsageError, VPNsError
from utils.tensors import load_into, read_tensors, understood

Rule = Callable[[nn.Module], Mapping[str, Tensor]]  # the weights that can be pruned, by name


class MaskFile(NamedTuple):
    """Masks (bool by parameter name), the network's state dict, and the prompt's program if any."""

    masks: dict[str, Tensor]
    state: dict[str, Tensor]
    program: Tensor | None


def read_mask_file(
    path: Path, row: Backbone, rule: Rule, density: float | None, key: str | None = None
) -> MaskFile:
    """A model file of ours, or any file of the network's weights: its masks, scores or zeros.

    `rule` tells which weights of a network can be pruned; scores need their density; `key` is that
    of `find_state`. Raises VPNsError when the file is damaged or holds no mask.
    """
    content = read_tensors(path)
    with understood(path):
        if has_meta(path):
            meta = read_meta(path)
            program = meta["program"] and unpack_tensor(meta["program"])
            return MaskFile(masks_of(content, meta), content, program)
        network = row.skeleton(row.source_classes)
        found = find_state(content, network.state_dict(), row.head, key)
        if found.scores and density is None:
            raise UsageError(f"{path} holds scores: name their density, one, in --density_list")
        names, masks = list(rule(network)), found.masks
        if found.scores:
            masks = threshold_masks(found.scores, density)
        elif set(masks) & set(names):  # layers without a mask are whole, masks of biases no matter
            whole = {name: torch.ones_like(found.state[name]) for name in names}
            masks = {name: masks.get(name, whole[name]) for name in names}
        else:
            masks = {name: found.state[name] for name in names}
            if all(bool((weight != 0).all()) for weight in masks.values()):
                raise VPNsError(f"{path} holds no mask: no weight_mask, no popup_scores, no zeros")
        program = (content.get("visual_prompt") or {}).get("program")
        if not isinstance(program, Tensor | None):
            raise TypeError(f"the prompt is a {type(program).__name__}")
        return MaskFile({name: mask != 0 for name, mask in masks.items()}, found.state, program)


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
        load_into(model.network, file.state)
        if model.prompt is None or file.program is None:
            return
        _, size, _ = file.program.shape
        if size != model.prompt.output_size:
            raise VPNsError(f"{path} has a prompt of {size} pixels: use --output_size {size}")
        if file.program.is_complex() or file.program.shape != model.prompt.program.shape:
            raise ValueError(f"a prompt of {file.program.dtype} {tuple(file.program.shape)}")
        model.prompt.program.copy_(file.program)
