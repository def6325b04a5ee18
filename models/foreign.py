"""The `.pth` files of the authors' code (UNITES-Lab/VPNs) as plain networks with masks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones import NETWORKS
from models.foreign_masks import check_masks, check_scores, threshold_masks
from models.foreign_network import masks_in, plain, recognise, scores_in, skeleton, tensors
from models.foreign_prompt import ForeignPrompt, read_prompt
from utils.counts import pruned_count
from utils.errors import UsageError, VPNsError
from utils.tensors import read_tensors, understood

Rule = Callable[[nn.Module], Mapping[str, Tensor]]  # the weights that can be pruned, by name


@dataclass(frozen=True)
class Foreign:
    """The contents of an authors' file.

    `state_dict` has the plain network's own keys, exact +0.0 where pruned; `masks` are bool by
    parameter name, True is kept; `label_map` int64 (C,); accuracy in 0..1; `stage` search or
    finetune; `notes` one line each, for the user.
    """

    network: str
    state_dict: dict[str, Tensor]
    masks: dict[str, Tensor]
    label_map: Tensor
    prompt: ForeignPrompt | None
    density: float
    kept: int
    prunable: int
    claimed_accuracy: float | None
    stage: str
    notes: tuple[str, ...]


def read_authors(
    path: Path | str,
    prunable: Rule,
    density: float | None = None,
    file: dict[str, Any] | None = None,
) -> Foreign:
    """Read an authors' checkpoint: score files of VPNs, HYDRA and BiP, and mask baselines.

    `prunable` tells which weights of a network can be pruned; `file` holds the contents of the
    path, where they were read before. Raises UsageError when `density` is not in (0, 1] or is
    missing for a score file, VPNsError for files of another kind, each with the reason.
    """
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"density {density} is not in (0, 1]")
    file = read_tensors(path) if file is None else file
    with understood(path):
        try:
            return _interpret(file, prunable, density)
        except VPNsError as error:
            raise type(error)(f"{path}: {error}") from error


def _interpret(file: dict[str, Any], prunable: Rule, density: float | None) -> Foreign:
    raw, notes = tensors(file, "state_dict"), []
    network, state = recognise(plain(raw), notes)
    weights = {name: state[name] for name in prunable(skeleton(network))}
    masks, scored = _masks(file, raw, weights, density)
    kept = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    expected = kept if density is None else total - pruned_count(total, density)
    if kept != expected:
        why = "ties at the threshold are pruned" if scored else "its masks are taken as they are"
        notes.append(f"keeps {kept} of {total}, not {expected}: {why}")
    no_prompt = file.get("visual_prompt") is None
    return Foreign(
        network=network,
        state_dict=state | {n: weights[n].masked_fill(~mask, 0.0) for n, mask in masks.items()},
        masks=masks,
        label_map=_label_map(file, NETWORKS[network].source_classes),
        prompt=None if no_prompt else read_prompt(tensors(file, "visual_prompt")),
        density=kept / total if density is None else density,
        kept=kept,
        prunable=total,
        claimed_accuracy=_accuracy(file),
        # `<level>prune.pth` has the prompt's optimizer under the shorter key
        stage="search" if "vp_optimizer" in file else "finetune",
        notes=tuple(notes),
    )


def _masks(
    file: Mapping[str, Any],
    raw: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    density: float | None,
) -> tuple[dict[str, Tensor], bool]:
    """Masks from scores, or those that a baseline stores; and whether they are from scores."""
    scores, masks = scores_in(raw), masks_in(raw)
    if scores:
        check_scores(scores, weights)
        if density is None:
            raise UsageError("its scores do not store their density: name it with --density")
        return threshold_masks(scores, density), True
    if not masks and file.get("mask"):
        masks = {k: mask for k, mask in tensors(file, "mask").items() if k.endswith("weight")}
    if not masks:
        raise VPNsError("it holds neither popup_scores nor masks: nothing says what is pruned")
    check_masks(masks, weights)
    return {name: masks[name] != 0 for name in weights}, False


def _label_map(file: Mapping[str, Any], sources: int) -> Tensor:
    label_map = file.get("mapping_sequence")
    if not isinstance(label_map, Tensor):
        raise VPNsError("no mapping_sequence: the classes of its outputs are unknown")
    if label_map.dtype != torch.int64 or label_map.ndim != 1 or not len(label_map):
        kind = f"{label_map.dtype} {tuple(label_map.shape)}"
        raise VPNsError(f"its label map is {kind}, not int64 (C,)")
    if label_map.min() < 0 or label_map.max() >= sources:
        raise VPNsError(f"its label map has entries outside 0..{sources - 1}")
    if len(label_map.unique()) < len(label_map):
        raise VPNsError("its label map gives one source class to several classes")
    return label_map


def _accuracy(file: Mapping[str, Any]) -> float | None:
    """The test accuracy that the file claims, in 0..1; None where there is none."""
    results = file.get("all_results")
    results = results if isinstance(results, dict) else {}
    claim = file.get("ckpt_test_acc", results.get("ckpt_test_acc"))
    if isinstance(claim, Tensor) and claim.numel() == 1:
        claim = claim.item()
    if not isinstance(claim, int | float) or not math.isfinite(claim) or not 0 <= claim <= 1:
        return None
    return float(claim)
