"""Which network an authors' state dict belongs to, and its plain keys."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones import NETWORKS
from models.pretrained import all_tensors, misfit
from utils.errors import VPNsError

SCORE, ORIG, MASK = ".popup_scores", ".weight_orig", ".weight_mask"


def tensors(file: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """The state dict under `key`. Raises VPNsError when there is none."""
    found = file.get(key)
    if not isinstance(found, dict) or not all_tensors(found):
        raise VPNsError(f"not a checkpoint of the authors' code: no tensors under {key!r}")
    return dict(found)


def plain(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own keys: scores and masks left out, weight_orig called weight."""
    return {
        key.removesuffix("_orig") if key.endswith(ORIG) else key: value.detach().contiguous()
        for key, value in raw.items()
        if not key.endswith((SCORE, MASK))
    }


def layers(tensors: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """The entries `<layer><suffix>` by layer."""
    return {k.removesuffix(suffix): v for k, v in tensors.items() if k.endswith(suffix)}


def _skeleton(name: str) -> nn.Module:
    """The network without memory, for its names and shapes."""
    return _on_meta(NETWORKS[name].build, NETWORKS[name].source_classes)


@cache
def _on_meta(build: Callable[[int], nn.Module], classes: int) -> nn.Module:
    with torch.device("meta"):
        return build(classes)


def recognise(state: dict[str, Tensor], notes: list[str]) -> tuple[str, dict[str, Tensor]]:
    """The network whose keys are nearest, and its state dict; appends to `notes`."""
    own = {name: _skeleton(name).state_dict() for name in NETWORKS}
    name = min(own, key=lambda n: len(own[n].keys() ^ state.keys()))
    if len(own[name].keys() & state.keys()) < len(own[name]) / 2:
        raise VPNsError(f"its network is not recognised: it is none of {', '.join(NETWORKS)}")
    biases = _conv_biases(name)
    if biases and not any(key in state for key in biases):
        state = state | {key: torch.zeros(own[name][key].shape) for key in biases}
        notes.append("trained without the biases of the convolutions: they are zero here")
    problem = misfit(own[name], state)
    if problem:
        raise VPNsError(f"its network is nearest to {name}, but does not fit: {problem}")
    return name, {key: state[key] for key in own[name] if key in state}


def _conv_biases(name: str) -> list[str]:
    convs = {n: m for n, m in _skeleton(name).named_modules() if isinstance(m, nn.Conv2d)}
    return [f"{n}.bias" for n, m in convs.items() if m.bias is not None]


def prunable(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of every convolution and linear layer by layer name, in network order."""
    modules = _skeleton(name).named_modules()
    names = [n for n, m in modules if isinstance(m, nn.Conv2d | nn.Linear)]
    return {n: state[f"{n}.weight"] for n in names}
