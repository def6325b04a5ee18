"""A pruned classifier as tensors with stock keys and a few JSON values, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.classifier import PromptedClassifier
from utils.model_file import pack_tensor, unpack_tensor

Masks = Mapping[str, Tensor]


def export(model: PromptedClassifier, masks: Masks) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The network's own state dict with +0.0 in the pruned places, and what is not in it.

    The file holds the mask as "not zero"; a kept weight that happens to be exactly zero is listed
    in `kept_zeros` by its flat index, so that the mask comes back to the last weight.
    """
    tensors = dict(model.network.state_dict())
    kept_zeros = {}
    for name, mask in masks.items():
        weight = tensors[f"{name}.weight"].masked_fill(~mask, 0.0)
        tensors[f"{name}.weight"] = weight
        zeros = ((weight == 0) & mask).flatten().nonzero().flatten().tolist()
        if zeros:
            kept_zeros[name] = zeros
    normalisation = {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    meta = {
        "kept_zeros": kept_zeros,
        "label_map": None if model.label_map is None else model.label_map.tolist(),
        "normalisation": normalisation,
        "program": None if model.prompt is None else pack_tensor(model.prompt.program),
    }
    return tensors, meta


def masks_of(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """The masks of an exported network: every weight that is not zero, and the kept zeros.

    Layers are those whose `weight` has two dimensions or more: convolutions and linear layers.
    """
    masks = {
        key.removesuffix(".weight"): tensor != 0
        for key, tensor in tensors.items()
        if key.endswith(".weight") and tensor.ndim >= 2
    }
    for name, zeros in meta["kept_zeros"].items():
        masks[name].view(-1)[zeros] = True
    return masks


@torch.no_grad()
def restore(
    model: PromptedClassifier, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Put an exported network, its prompt and its label mapping into `model`, in place.

    Raises ValueError when they do not fit; for within `understood`.
    """
    try:
        model.network.load_state_dict(tensors, strict=True)
        if model.prompt is not None and meta["program"] is not None:
            model.prompt.program.copy_(unpack_tensor(meta["program"]))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the checkpoint does not fit the network: {reason[:300]}") from error
    device = model.mean.device
    mapped = meta["label_map"]
    model.label_map = None if mapped is None else torch.tensor(mapped, device=device)
    model.check_map()
