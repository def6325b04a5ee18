"""A pruned classifier as tensors with the network's own keys and a few JSON values, and back."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.classifier import PromptedClassifier
from utils.checkpoint import pack_tensor, unpack_tensor
from utils.tensors import load_into

LISTED = 4096  # kept zeros of a weight
Masks = Mapping[str, Tensor]  # bool by parameter name, in the shape of the weight; True is kept


def export(model: PromptedClassifier, masks: Masks) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The network's state dict with +0.0 in the pruned places, and the values that it lacks.

    The file holds a mask as "not zero"; `kept_zeros` lists the flat indices of kept weights that
    happen to be exactly zero, so that the mask comes back to the last weight. Of more than LISTED
    in one weight it holds a bit a weight, in base64. docs/format.md says what each value is.
    """
    tensors = dict(model.network.state_dict())
    kept_zeros = {}
    for name, mask in masks.items():
        tensors[name] = tensors[name].masked_fill(~mask, 0.0)
        zeros = ((tensors[name] == 0) & mask).flatten()
        if (count := int(zeros.sum())) > LISTED:
            bits = np.packbits(zeros.cpu().numpy())
            kept_zeros[name] = base64.b64encode(bits.tobytes()).decode()
        elif count:
            kept_zeros[name] = zeros.nonzero().flatten().tolist()
    normalisation = {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    meta = {
        "classes": list(model.names),
        "masks": sorted(masks),
        "kept_zeros": kept_zeros,
        "label_map": None if model.label_map is None else model.label_map.tolist(),
        "normalisation": normalisation,
        "program": None if model.prompt is None else pack_tensor(model.prompt.program),
        "prompt_pixels": None if model.prompt is None else pack_tensor(model.prompt.finished()),
    }
    return tensors, meta


def masks_of(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """The masks of an exported network by parameter name: nonzero weights and kept zeros.

    Raises ValueError or LookupError for names that no tensor has; for within `understood`.
    """
    names, zeros = meta.get("masks"), meta["kept_zeros"]
    if "masks" not in meta:  # files of the first version name layers, and not all of them
        names = [n for n, t in tensors.items() if n.endswith(".weight") and t.ndim >= 2]
        zeros = {f"{layer}.weight": indices for layer, indices in zeros.items()}
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError("its masks are no list of parameter names")
    masks = {name: tensors[name] != 0 for name in names}
    for name, places in zeros.items():
        kept = masks[name].view(-1)
        zero = _places(places, len(kept))
        if zero is None or kept[zero].any():
            raise ValueError(f"its kept zeros are no places of zeros in {name}")
        kept[zero] = True
    return masks


def _places(given: Any, count: int) -> Tensor | None:
    """Some of `count` places, by a list of numbers or by bits, as bool (N,); None for others."""
    zero = torch.zeros(count, dtype=torch.bool)
    if isinstance(given, str):
        bits = np.frombuffer(base64.b64decode(given), np.uint8)
        if len(bits) != -(-count // 8):
            return None
        return torch.from_numpy(np.unpackbits(bits, count=count)).bool()
    if not all(type(i) is int and 0 <= i < count for i in given):
        return None
    zero[given] = True
    return zero


@torch.no_grad()
def restore(
    model: PromptedClassifier, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Put an exported network, its prompt and its label mapping into `model`, in place.

    Raises ValueError when they do not fit; for within `understood`.
    """
    try:
        load_into(model.network, tensors)
        if model.prompt is not None:
            program = unpack_tensor(meta["program"])
            if program.shape != model.prompt.program.shape:
                raise ValueError(f"a prompt that does not fit: {tuple(program.shape)}")
            model.prompt.program.copy_(program)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the checkpoint does not fit the network: {reason[:300]}") from error
    label_map = meta["label_map"]
    if label_map is not None:
        label_map = torch.tensor(label_map, device=model.mean.device)
    model.label_map, model.names = label_map, tuple(meta.get("classes", ()))
    model.check_map()
    if model.names and len(model.names) != model.classes or not all(
        isinstance(name, str) for name in model.names
    ):
        raise ValueError(f"{len(model.names)} names for {model.classes} classes")
