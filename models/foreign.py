"""The `.pth` files of the authors' code (UNITES-Lab/VPNs) as plain networks with masks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.backbones import NETWORKS
from models.foreign_masks import (
    check_layers,
    check_scores,
    infer_density,
    near,
    threshold_masks,
)
from models.foreign_network import MASK, SCORE, layers, plain, prunable, recognise, tensors
from models.foreign_prompt import ForeignPrompt, read_prompt
from utils.counts import pruned_count
from utils.errors import UsageError, VPNsError
from utils.tensors import read_tensors, understood


@dataclass(frozen=True)
class Foreign:
    """What an authors' file says.

    `state_dict` has the plain network's own keys, exact +0.0 where pruned; `masks` are bool by
    layer, True = kept; `label_map` int64 (C,); accuracy in 0..1; `stage` search or finetune;
    `notes` one line each, for the user.
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
    path: Path | str, density: float | None = None, file: dict[str, Any] | None = None
) -> Foreign:
    """Read an authors' checkpoint: score files of VPNs, HYDRA and BiP, and mask baselines.

    Score files do not store their density: give it, or it is inferred from weights that were
    fine-tuned with SGD. `file` is what the path holds, where that was read before. Raises
    UsageError when that cannot be done or `density` is not in (0, 1],
    VPNsError for files of another kind, each with the path and the reason.
    """
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"density {density} is not in (0, 1]")
    file = read_tensors(path) if file is None else file
    with understood(path):
        try:
            return _interpret(file, density)
        except VPNsError as error:
            raise type(error)(f"{path}: {error}") from error


def _interpret(file: dict[str, Any], density: float | None) -> Foreign:
    raw = tensors(file, "state_dict")
    notes: list[str] = []
    network, state = recognise(plain(raw), notes)
    weights = prunable(network, state)
    scores = layers(raw, SCORE)
    if scores:
        check_scores(scores, weights)
        density = _density(file, scores, weights, density, notes)
        masks = threshold_masks(scores, density)
    else:
        masks = _given_masks(file, raw, weights)
    kept = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    _check_count(density, kept, total, bool(scores), notes)
    no_prompt = file.get("visual_prompt") is None
    for name, mask in masks.items():
        state[f"{name}.weight"] = weights[name].masked_fill(~mask, 0.0)
    return Foreign(
        network=network,
        state_dict=state,
        masks=masks,
        label_map=_label_map(file, NETWORKS[network].source_classes),
        prompt=None if no_prompt else read_prompt(tensors(file, "visual_prompt")),
        density=kept / total if density is None else density,
        kept=kept,
        prunable=total,
        claimed_accuracy=_accuracy(file),
        stage=_stage(file),
        notes=tuple(notes),
    )


def _density(
    file: Mapping[str, Any],
    scores: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    given: float | None,
    notes: list[str],
) -> float:
    """The density given, or the one inferred; appends to `notes` when they differ."""
    scores = {name: scores[name] for name in weights}
    try:
        inferred = infer_density(scores, weights, _start(file, weights))
    except UsageError as error:
        if given is None:
            problem = f"cannot infer the density, give it with --density: {error}"
            raise UsageError(problem) from error
        return given
    if given is None:
        notes.append(f"density {inferred:g} inferred from the decay of the pruned weights")
        return inferred
    if not near(given, inferred, sum(w.numel() for w in weights.values())):
        notes.append(f"the pruned weights point to density {inferred:g}, not {given:g}")
    return given


def _start(file: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights before fine-tuning. Raises UsageError when they say nothing on the density."""
    if _stage(file) == "search":
        raise UsageError("the file is from the search, before any weight moved")
    groups = _dict(file, "weight_optimizer").get("param_groups", ())
    if any("betas" in group for group in groups):
        raise UsageError("its weights were fine-tuned with Adam, which hides the common decay")
    start = _dict(file, "init_weight")
    found = {name: start.get(f"{name}.weight") for name in weights}
    for name, weight in weights.items():
        if found[name] is None or found[name].shape != weight.shape:
            raise UsageError(f"init_weight has no start of {name}")
    return found


def _given_masks(
    file: Mapping[str, Any], raw: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The masks that a mask baseline stores, as weight_mask or as a dict of their own."""
    found = layers(raw, MASK)
    if not found and file.get("mask"):
        found = layers(tensors(file, "mask"), ".weight")
    if not found:
        raise VPNsError("it holds neither popup_scores nor masks: nothing says what is pruned")
    check_layers(found, weights, "masks")
    for name, mask in found.items():
        if not ((mask == 0) | (mask == 1)).all():
            raise VPNsError(f"the mask of {name} has values other than 0 and 1")
    return {name: found[name] != 0 for name in weights}


def _check_count(
    density: float | None, kept: int, total: int, scored: bool, notes: list[str]
) -> None:
    """Append to `notes` when the masks keep another number than the density says."""
    asked = None if density is None else total - pruned_count(total, density)
    if asked in (None, kept):
        return
    why = "ties at the threshold are pruned" if scored else "its masks are taken as they are"
    notes.append(f"keeps {kept} of {total}, not {asked}: {why}")


def _label_map(file: Mapping[str, Any], sources: int) -> Tensor:
    found = file.get("mapping_sequence")
    if not isinstance(found, Tensor):
        raise VPNsError("no mapping_sequence: the classes of its outputs are unknown")
    if found.dtype != torch.int64 or found.ndim != 1 or not len(found):
        raise VPNsError(f"its label map is {found.dtype} {tuple(found.shape)}, not int64 (C,)")
    if found.min() < 0 or found.max() >= sources:
        raise VPNsError(f"its label map has entries outside 0..{sources - 1}")
    if len(found.unique()) < len(found):
        raise VPNsError("its label map gives one source class to several classes")
    return found


def _accuracy(file: Mapping[str, Any]) -> float | None:
    """The test accuracy that the file claims, in 0..1; None where there is none."""
    found = file.get("ckpt_test_acc", _dict(file, "all_results").get("ckpt_test_acc"))
    if isinstance(found, Tensor) and found.numel() == 1:
        found = found.item()
    if not isinstance(found, int | float) or not math.isfinite(found) or not 0 <= found <= 1:
        return None
    return float(found)


def _dict(file: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The dict under `key`, empty where there is another thing or nothing."""
    found = file.get(key)
    return found if isinstance(found, dict) else {}


def _stage(file: Mapping[str, Any]) -> str:
    """`search` for `<level>prune.pth`, which has the prompt's optimizer under the shorter key."""
    return "search" if "vp_optimizer" in file else "finetune"
