"""Which network an authors' state dict belongs to, and the names of its plain parameters."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones import NETWORKS
from models.pretrained import all_tensors, misfit
from utils.errors import VPNsError

# Scores lie beside a layer's weight; torch.nn.utils.prune puts its suffixes behind the weight.
SCORE, ORIG, MASK = ".popup_scores", "weight_orig", "weight_mask"


def tensors(file: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """The state dict under `key`. Raises VPNsError when there is none."""
    state = file.get(key)
    if not isinstance(state, dict) or not all_tensors(state):
        raise VPNsError(f"not a checkpoint of the authors' code: no tensors under {key!r}")
    return dict(state)


def plain(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own parameters: scores and masks left out, weight_orig called weight."""
    return {
        key.removesuffix("_orig") if key.endswith(ORIG) else key: value.detach().contiguous()
        for key, value in raw.items()
        if not key.endswith((SCORE, MASK))
    }


def scores_in(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores by the name of the parameter that they are for."""
    scores = {key.removesuffix(SCORE): value for key, value in raw.items() if key.endswith(SCORE)}
    return {f"{layer}.weight": value for layer, value in scores.items()}


def masks_in(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks as they are stored, by the name of the parameter that they are for."""
    return {key.removesuffix("_mask"): value for key, value in raw.items() if key.endswith(MASK)}


def skeleton(name: str) -> nn.Module:
    """The network without memory, for its names and shapes."""
    return _on_meta(NETWORKS[name].build, NETWORKS[name].source_classes)


@cache
def _on_meta(build: Callable[[int], nn.Module], classes: int) -> nn.Module:
    with torch.device("meta"):
        return build(classes)


def recognise(state: dict[str, Tensor], notes: list[str]) -> tuple[str, dict[str, Tensor]]:
    """The network whose keys are nearest, and its state dict; appends to `notes`."""
    known = {name: skeleton(name).state_dict() for name in NETWORKS}
    name = min(known, key=lambda n: len(known[n].keys() ^ state.keys()))
    if len(known[name].keys() & state.keys()) < len(known[name]) / 2:
        raise VPNsError(f"its network is not recognised: it is none of {', '.join(NETWORKS)}")
    biases = _conv_biases(name)
    if biases and not any(key in state for key in biases):
        state = state | {key: torch.zeros(known[name][key].shape) for key in biases}
        notes.append("trained without the biases of the convolutions: they are zero here")
    problem = misfit(known[name], state)
    if problem:
        raise VPNsError(f"its network is nearest to {name}, but does not fit: {problem}")
    return name, {key: state[key] for key in known[name] if key in state}


def _conv_biases(name: str) -> list[str]:
    convs = {n: m for n, m in skeleton(name).named_modules() if isinstance(m, nn.Conv2d)}
    return [f"{n}.bias" for n, m in convs.items() if m.bias is not None]
