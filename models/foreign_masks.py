"""Masks from the authors' files by their threshold rule, and whether they fit the network.

Theirs is the strict rule of METHODS section 1.3 as published, ties pruned; `keep_top` of our own
searches differs from it in the ties only.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from models.pretrained import few
from utils.counts import pruned_count
from utils.errors import VPNsError


def threshold_masks(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Keep |score| > tau, tau the int((1 - density) * N)-th smallest of all; bool by name."""
    sizes = torch.cat([score.flatten() for score in scores.values()]).float().abs_()
    pruned = pruned_count(len(sizes), density)
    if pruned < 1:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    tau = float(np.partition(sizes.numpy(), pruned - 1)[pruned - 1])
    return {name: score.abs() > tau for name, score in scores.items()}


def check_scores(scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Require one finite score for each weight. Raises VPNsError with the reason."""
    a_channel = [n for n, s in scores.items() if s.ndim == 4 and s.shape[1:] == (1, 1, 1)]
    if any(weights[name].shape[1:] != (1, 1, 1) for name in a_channel if name in weights):
        raise VPNsError("a structured (channel-pruning) file, one score a channel: not supported")
    check_shapes(scores, weights, "scores")
    broken = [name for name, score in scores.items() if not score.isfinite().all()]
    if broken:
        raise VPNsError(f"the scores of {broken[0]} are not finite")


def check_masks(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Require 0 or 1 for each weight. Raises VPNsError with the reason."""
    check_shapes(masks, weights, "masks")
    for name, mask in masks.items():
        if not ((mask == 0) | (mask == 1)).all():
            raise VPNsError(f"the mask of {name} has values other than 0 and 1")


def check_shapes(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str
) -> None:
    """Require a tensor of its shape for each weight and no other. Raises VPNsError if not."""
    missing, unexpected = weights.keys() - tensors.keys(), tensors.keys() - weights.keys()
    if missing:
        raise VPNsError(f"no {what} for {few(sorted(missing))}")
    if unexpected:
        raise VPNsError(f"{what} for {few(sorted(unexpected))}, which cannot be pruned")
    for name, weight in weights.items():
        if tensors[name].shape != weight.shape:
            shapes = f"{tuple(tensors[name].shape)} instead of {tuple(weight.shape)}"
            raise VPNsError(f"the {what} of {name} have the shape {shapes}")
