"""The `.pth` files of the authors' code (UNITES-Lab/VPNs) as plain networks with masks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones import NETWORKS
from models.containers import masks_in, plain, scores_in
from models.foreign_prompt import ForeignPrompt, read_prompt
from models.mask_file import threshold_masks
from models.pretrained import all_tensors, few, misfit
from utils.counts import count_at
from utils.errors import UsageError, VPNsError

Rule = Callable[[nn.Module], Mapping[str, Tensor]]  # the weights that can be pruned, by name
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Foreign:
    """The contents of an authors' file.

    `state_dict` has the plain network's own keys, exact +0.0 where pruned; `masks` are bool by
    parameter name, True is kept; `label_map` int64 (C,); accuracy in 0..1; `notes` one line each,
    for the user.
    """

    network: str
    state_dict: dict[str, Tensor]
    masks: dict[str, Tensor]
    label_map: Tensor
    prompt: ForeignPrompt | None
    claimed_accuracy: float | None
    notes: tuple[str, ...]


def read_authors(
    path: Path, prunable: Rule, density: float | None, file: Mapping[str, Any]
) -> Foreign:
    """Read an authors' checkpoint: score files of VPNs, HYDRA and BiP, and mask baselines.

    `prunable` tells which weights of a network can be pruned; `file` holds the contents of `path`.
    For within `understood`. Raises UsageError when a score file comes without a density, VPNsError
    for files of another kind, each with the reason.
    """
    try:
        return _interpret(file, prunable, density)
    except VPNsError as error:
        raise type(error)(f"{path}: {error}") from error


def _interpret(file: Mapping[str, Any], prunable: Rule, density: float | None) -> Foreign:
    raw, notes = _tensors(file, "state_dict"), []
    network, state = recognise(plain(raw), notes)
    row = NETWORKS[network]
    weights = {name: state[name] for name in prunable(row.skeleton(row.source_classes))}
    scores = scores_in(raw)
    masks = _score_masks(scores, weights, density) if scores else _stored_masks(file, raw, weights)
    count = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    expected = count if density is None else count_at(density, total)
    if count != expected:
        why = "ties at the threshold are pruned" if scores else "its masks are taken as they are"
        notes.append(f"keeps {count} of {total}, not {expected}: {why}")
    no_prompt = file.get("visual_prompt") is None
    return Foreign(
        network=network,
        state_dict=state | {n: weights[n].masked_fill(~mask, 0.0) for n, mask in masks.items()},
        masks=masks,
        label_map=_label_map(file, row.source_classes),
        prompt=None if no_prompt else read_prompt(_tensors(file, "visual_prompt")),
        claimed_accuracy=_accuracy(file),
        notes=tuple(notes),
    )


def _tensors(file: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    state = file.get(key)
    if not isinstance(state, dict) or not all_tensors(state):
        raise VPNsError(f"not a checkpoint of the authors' code: no tensors under {key!r}")
    return dict(state)


def recognise(state: dict[str, Tensor], notes: list[str]) -> tuple[str, dict[str, Tensor]]:
    """The network whose keys are nearest, and its state dict; appends to `notes`."""
    skeletons = {name: row.skeleton(row.source_classes) for name, row in NETWORKS.items()}
    expected = {name: skeleton.state_dict() for name, skeleton in skeletons.items()}
    name = min(expected, key=lambda n: len(expected[n].keys() ^ state.keys()))
    if len(expected[name].keys() & state.keys()) < len(expected[name]) / 2:
        raise VPNsError(f"its network is not recognised: it is none of {', '.join(NETWORKS)}")
    modules = skeletons[name].named_modules()
    biases = [f"{n}.bias" for n, m in modules if isinstance(m, nn.Conv2d) and m.bias is not None]
    if biases and not any(key in state for key in biases):
        state = state | {key: torch.zeros(expected[name][key].shape) for key in biases}
        notes.append("trained without the biases of the convolutions: they are zero here")
    problem = misfit(expected[name], state)
    if problem:
        raise VPNsError(f"its network is nearest to {name}, but does not fit: {problem}")
    return name, {key: state[key] for key in expected[name] if key in state}


def _score_masks(scores: Tensors, weights: Tensors, density: float | None) -> dict[str, Tensor]:
    a_channel = [n for n, s in scores.items() if s.ndim == 4 and s.shape[1:] == (1, 1, 1)]
    if any(weights[name].shape[1:] != (1, 1, 1) for name in a_channel if name in weights):
        raise VPNsError("a structured (channel-pruning) file, one score a channel: not supported")
    _check_shapes(scores, weights, "scores")
    broken = [name for name, score in scores.items() if not score.isfinite().all()]
    if broken:
        raise VPNsError(f"the scores of {broken[0]} are not finite")
    if density is None:
        raise UsageError("its scores do not store their density: name it with --density")
    return threshold_masks(scores, density)


def _stored_masks(file: Mapping[str, Any], raw: Tensors, weights: Tensors) -> dict[str, Tensor]:
    """The masks that a baseline stores, in its state dict or under `mask`."""
    masks = masks_in(raw)
    if not masks and file.get("mask"):
        masks = {k: mask for k, mask in _tensors(file, "mask").items() if k.endswith("weight")}
    if not masks:
        raise VPNsError("it holds neither popup_scores nor masks: nothing says what is pruned")
    _check_shapes(masks, weights, "masks")
    for name, mask in masks.items():
        if not ((mask == 0) | (mask == 1)).all():
            raise VPNsError(f"the mask of {name} has values other than 0 and 1")
    return {name: masks[name] != 0 for name in weights}


def _check_shapes(tensors: Tensors, weights: Tensors, what: str) -> None:
    """Require a tensor of its shape for each weight and no other."""
    missing, unexpected = weights.keys() - tensors.keys(), tensors.keys() - weights.keys()
    if missing:
        raise VPNsError(f"no {what} for {few(sorted(missing))}")
    if unexpected:
        raise VPNsError(f"{what} for {few(sorted(unexpected))}, which cannot be pruned")
    for name, weight in weights.items():
        if tensors[name].shape != weight.shape:
            shapes = f"{tuple(tensors[name].shape)} instead of {tuple(weight.shape)}"
            raise VPNsError(f"the {what} of {name} have the shape {shapes}")


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
    if not isinstance(claim, int | float) or not 0 <= claim <= 1:
        return None
    return float(claim)
