"""Networks narrower than their code makes them: fewer channels in some layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Convolution

Widths = Mapping[str, Sequence[int]]  # shapes by the name of a parameter or buffer


def widths_of(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The tensors of `state` that have another shape than in `expected`, or are new."""
    return {name: list(tensor.shape) for name, tensor in state.items()
            if name not in expected or expected[name].shape != tensor.shape}  # fmt: skip


def with_widths(network: nn.Module, widths: Widths) -> nn.Module:
    """Give tensors of a network these shapes, in place: no dimension grows; returns the network.

    A convolution or linear layer without a bias may get one. The first values stay, to be loaded
    over. Raises ValueError for a tensor that it has not, or another kind of shape.
    """
    for name, shape in widths.items():
        owner, _, leaf = name.rpartition(".")
        try:
            module = network.get_submodule(owner)
        except AttributeError:
            raise ValueError(f"widths of {name}, which the network has not") from None
        tensor = getattr(module, leaf, None)
        layer = isinstance(module, Convolution | nn.Linear)
        if leaf == "bias" and tensor is None and layer:
            tensor = module.weight.new_zeros(len(module.weight))
        if not isinstance(tensor, Tensor) or not _fits(shape, tensor.shape):
            raise ValueError(f"{name} of shape {shape}, which the network cannot have")
        part = tensor.detach()[tuple(map(slice, shape))].clone()
        setattr(module, leaf, part if leaf in module._buffers else nn.Parameter(part))
    for module in {name.rpartition(".")[0]: None for name in widths}:
        _follow(network.get_submodule(module))
    return network


def _fits(shape: Any, largest: torch.Size) -> bool:
    if not isinstance(shape, list | tuple) or len(shape) != len(largest):
        return False
    return all(type(n) is int and 0 < n <= most for n, most in zip(shape, largest, strict=True))


def _follow(module: nn.Module) -> None:
    """Let the numbers in a module follow from the shapes of its tensors."""
    if isinstance(module, Convolution):
        if module.groups == module.in_channels:  # a filter for each channel, or one channel
            module.groups = len(module.weight) if module.groups > 1 else 1
        module.out_channels = len(module.weight)
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, BatchNorm):
        known = [t for t in (module.weight, module.running_mean) if t is not None]
        module.num_features = len(known[0]) if known else module.num_features
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
