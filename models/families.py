"""Networks of timm, of torchvision and of the user as rows: the libraries know their own facts."""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from models.rows import Backbone
from utils.config import not_one_of
from utils.errors import UsageError, VPNsError, message_of

TWO_OUTPUTS = ("googlenet", "inception_v3")
FAMILIES = ("timm", "torchvision")
Build = Callable[[int], nn.Module]


@lru_cache
def family_row(name: str) -> Backbone:
    """The row of `timm:NAME`, `torchvision:NAME` or `module:function`.

    Raises UsageError for a name that the library has not, VPNsError for a function that fails.
    """
    family, _, own = name.partition(":")
    rows = {"timm": _timm_row, "torchvision": _torchvision_row}
    row = rows[family](own) if family in rows else _own_row(family, own)
    return replace(row, **_heads(name, row))


def _heads(name: str, row: Backbone) -> dict[str, Any]:
    """The last layers: those whose tensors have another shape for another number of classes."""
    few, more = (row.skeleton(classes).state_dict() for classes in (3, 5))
    differ = [key for key in few if key in more and few[key].shape != more[key].shape]
    heads = list(dict.fromkeys(key.rpartition(".")[0] for key in differ))
    if not heads or any(f"{head}.weight" not in few for head in heads):
        raise UsageError(f"{name} has no last layer with an output a class: it cannot be used")
    return {"head": heads[0], "other_heads": tuple(heads[1:])}


def _torchvision_row(name: str) -> Backbone:
    import torchvision.models as library

    names = library.list_models(module=library)
    if name not in names:
        raise UsageError(f"torchvision has no network {not_one_of(name, names[:5], ', ...')}")
    builder = library.get_model_builder(name)
    # Their auxiliary outputs would come beside the logits.
    options = {"aux_logits": False, "init_weights": True} if name in TWO_OUTPUTS else {}
    weights = library.get_model_weights(name).DEFAULT
    shown = weights.transforms()
    return _row(
        lambda classes: builder(num_classes=classes, **options), str(weights),
        len(weights.meta["categories"]), shown.crop_size[0], shown.mean, shown.std,
    )  # fmt: skip


def _timm_row(name: str) -> Backbone:
    try:
        import timm
    except ImportError as error:
        raise UsageError("networks of timm need the package timm: pip install timm") from error
    try:
        facts = timm.is_model(name) and timm.get_pretrained_cfg(name)
    except RuntimeError:  # weights of a name that it has not
        facts = False
    if facts is False:
        raise UsageError(f"timm has no network {name!r}: python -c 'import timm; "
                         "print(timm.list_models())' lists all")
    known = facts or timm.models.PretrainedCfg()  # a network without weights has timm's defaults
    return _row(
        lambda classes: timm.create_model(name, num_classes=classes), f"timm:{name}",
        known.num_classes, known.input_size[-1], known.mean, known.std,
    )  # fmt: skip


def _row(
    build: Build, source: str, classes: int, size: int, mean: tuple, std: tuple
) -> Backbone:  # fmt: skip
    return Backbone(
        build, "", "imagenet", source, classes, size, size, round(size * 16 / 224),
        tuple(mean), tuple(std),
    )  # fmt: skip


def _own_row(module: str, function: str) -> Backbone:
    """The network that a function in the working folder makes; its code runs."""
    if module.partition(".")[0] in ("models", "utils", "data", "prompts", "pruning", "program"):
        raise UsageError(f"--network {module}:{function}: {module} is a package of this program: "
                         "give your file another name")
    sys.path[:0] = [os.getcwd()] * (os.getcwd() not in sys.path)
    try:
        make = getattr(importlib.import_module(module), function)
        network = make(3)
    except (Exception, SystemExit) as error:  # the code of somebody
        raise VPNsError(f"--network {module}:{function} fails: {type(error).__name__}: "
                        f"{message_of(error)[:300]}") from error
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise VPNsError(f"--network {module}:{function} gives a {kind}, not a torch.nn.Module")
    if isinstance(network, torch.jit.ScriptModule):
        raise VPNsError(f"--network {module}:{function} gives a network of TorchScript, which "
                        "cannot be pruned: return the network that it was made from")
    if any(map(torch.nn.parameter.is_lazy, network.parameters())):
        raise VPNsError(f"--network {module}:{function} has lazy layers: give them their sizes")
    return Backbone(make, "", "none", "")
