"""Masks from the authors' files: their threshold rule, and the density that they do not store.

Theirs is the strict rule of METHODS section 1.3 as published, ties pruned; `keep_top` of our own
searches differs from it in the ties only.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from models.pretrained import few
from utils.counts import pruned_count
from utils.errors import UsageError, VPNsError

CLOSE = 1e-4  # a pruned weight's ratio to its start lies this near the common one (measured: 3e-5)
FIRST = 1001  # the smallest scores, whose weights are surely pruned, give the common ratio
OUTLIER = 20  # how many weights that fit one that does not fit outweighs
SLACK = 1e-5  # of all weights: how near a short density must come to be believed


def threshold_masks(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Keep |score| > tau, tau the int((1 - density) * N)-th smallest of all; bool by layer."""
    sizes = _flat(scores).abs_()
    pruned = pruned_count(len(sizes), density)
    if pruned < 1:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    tau = float(np.partition(sizes.numpy(), pruned - 1)[pruned - 1])
    return {name: score.abs() > tau for name, score in scores.items()}


def near(density: float, other: float, total: int) -> bool:
    """Whether two densities prune the same number of weights, up to the noise of inference."""
    difference = pruned_count(total, density) - pruned_count(total, other)
    return abs(difference) <= max(16, SLACK * total)


def infer_density(
    scores: Mapping[str, Tensor], weights: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> float:
    """The density of a file whose weights were fine-tuned with SGD, all three by layer name.

    Pruned weights felt weight decay only, so they are one common multiple of their start, and
    they are those with the smallest |score|. In that order the run of such weights ends at the
    first kept one. Kept weights without a gradient (classes that no label uses) fit as well, so
    their number alone would be too high. Raises UsageError when there is no such run.
    """
    order = np.argsort(_flat(scores).abs_().numpy())
    now, before = _flat(weights).numpy()[order], _flat(start).numpy()[order]
    fits = np.abs(now - _common_ratio(now, before) * before) <= CLOSE * np.abs(before) + 1e-30
    pruned = int(np.argmax(np.cumsum(np.where(fits, 1, -OUTLIER)))) + 1
    if pruned < FIRST // 2:
        raise UsageError("no common decay of the pruned weights (not tuned with SGD, or density 1)")
    if pruned >= len(fits) - SLACK * len(fits):
        raise UsageError("all weights changed alike (a file from before fine-tuning)")
    return _shortest(pruned, len(fits))


def _common_ratio(now: np.ndarray, before: np.ndarray) -> float:
    """The middle ratio at the smallest scores; dead filters of ImageNet networks are left out."""
    alive = np.abs(before[:FIRST]) > 1e-12
    if not alive.any():
        return 1.0
    return float(np.median(now[:FIRST][alive] / before[:FIRST][alive]))


def _shortest(pruned: int, total: int) -> float:
    """The density with the fewest decimals, up to 4, that prunes that many; else the exact one."""
    exact = 1 - (pruned + 0.5) / total
    shorter = (round(exact, places) for places in (1, 2, 3, 4))
    return next((d for d in shorter if d > 0 and near(d, exact, total)), exact)


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).float()


def check_scores(scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Require one finite score for each weight. Raises VPNsError with the reason."""
    a_channel = [n for n, s in scores.items() if s.ndim == 4 and s.shape[1:] == (1, 1, 1)]
    if any(weights[name].shape[1:] != (1, 1, 1) for name in a_channel if name in weights):
        raise VPNsError("a structured (channel-pruning) file, one score a channel: not supported")
    check_layers(scores, weights, "scores")
    broken = [name for name, score in scores.items() if not score.isfinite().all()]
    if broken:
        raise VPNsError(f"the scores of {broken[0]} are not finite")


def check_layers(found: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str) -> None:
    """Require one tensor a layer, of the shape of its weight. Raises VPNsError if not."""
    absent, foreign = sorted(weights.keys() - found.keys()), sorted(found.keys() - weights.keys())
    if absent:
        raise VPNsError(f"no {what} for {few(absent)}")
    if foreign:
        raise VPNsError(f"{what} for {few(foreign)}, which have no prunable weight")
    for name, weight in weights.items():
        if found[name].shape != weight.shape:
            shapes = f"{tuple(found[name].shape)} instead of {tuple(weight.shape)}"
            raise VPNsError(f"the {what} of {name} have the shape {shapes}")
