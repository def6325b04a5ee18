"""Masks beside an ordinary network: which weights can be pruned, which are kept, and how many."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import NumericError

Scores = dict[str, Tensor]  # by layer name, float, the shape of the weight; higher is kept
Masks = dict[str, Tensor]  # by layer name, bool, the shape of the weight; True is kept


def prunable(network: nn.Module) -> dict[str, nn.Module]:
    """Every convolution and linear layer by name, head and shortcuts included.

    Biases and BatchNorm are never pruned. Raises ValueError when there is nothing to prune.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    if not layers:
        raise ValueError("the network has no convolution and no linear layer to prune")
    return layers


def pruned_count(total: int, density: float) -> int:
    """How many of `total` weights go at `density`: int((1 - density) * total), in doubles.

    Truncated as in the authors' code, where rounding would give other counts.
    """
    return int((1 - density) * total)


def density_of(kept: int, total: int) -> float:
    """The density with the fewest decimals at which exactly `kept` of `total` weights stay."""
    for decimals in range(1, 17):
        density = round(kept / total, decimals)
        if 0 < density <= 1 and total - pruned_count(total, density) == kept:
            return density
    return 1 - (total - kept + 0.5) / total


def keep_top(scores: Mapping[str, Tensor], density: float) -> Masks:
    """Keep the highest scores over all layers together, an exact count of them.

    total - int((1 - density) * total) weights stay; of equal scores at the threshold the first
    in order stay. Raises NumericError when a score is not finite.
    """
    names = list(scores)
    keep = select_top(torch.cat([scores[name].flatten() for name in names]), density)
    parts = keep.split([scores[name].numel() for name in names])
    return {name: part.view(scores[name].shape) for name, part in zip(names, parts, strict=True)}


def select_top(values: Tensor, density: float) -> Tensor:
    """`keep_top` for one flat tensor (N,): a bool tensor (N,), True is kept.

    On an accelerator nothing waits for the device, and a value that is not finite is for the
    caller to find.
    """
    pruned = pruned_count(values.numel(), density)
    if values.device.type != "cpu":
        return _select_on_device(values, pruned)
    require_finite(values)
    if pruned == 0:
        return torch.ones_like(values, dtype=torch.bool)
    threshold = kth_smallest(values, pruned, torch.empty_like(values))
    keep = values > threshold
    # numpy counts a bool array in a hundredth of the time of torch's sum.
    missing = values.numel() - pruned - int(np.count_nonzero(keep.numpy()))
    if missing:
        ties = (values == threshold).nonzero().flatten()
        keep[ties[:missing]] = True
    return keep


def write_mask(values: Tensor, density: float, out: Tensor) -> Tensor:
    """`select_top` as 1.0 and 0.0 into `out`, a float tensor (N,); finite values are expected.

    This is the step of a search: it allocates nothing unless the threshold value is a tie.
    """
    pruned = pruned_count(values.numel(), density)
    if values.device.type != "cpu":
        return out.copy_(_select_on_device(values, pruned))
    if pruned == 0:
        return out.fill_(1.0)
    threshold = kth_smallest(values, pruned, out)
    # What follows the k-th place in `out` is now the upper part, in no order.
    if pruned < out.numel() and out[pruned:].min() == threshold:
        return out.copy_(select_top(values, density))
    return torch.gt(values, threshold, out=out)


def require_finite(values: Tensor) -> None:
    """Raises NumericError for a score that is not finite; the sum is looked at first."""
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise NumericError("a score is not finite and cannot decide a mask")


def kth_smallest(values: Tensor, k: int, scratch: Tensor) -> Tensor:
    """The k-th smallest (1-based) of a flat CPU tensor, as a tensor without dimensions.

    `scratch` (N,) ends as a partition of the values: smaller ones before place k, larger after.
    numpy's selection takes a seventh of the time of torch.kthvalue here.
    """
    scratch.copy_(values.detach()).numpy().partition(k - 1)
    return scratch[k - 1].clone()


def _select_on_device(values: Tensor, pruned: int) -> Tensor:
    if pruned == 0:
        return torch.ones_like(values, dtype=torch.bool)
    threshold = values.kthvalue(pruned).values
    keep = values > threshold
    ties = values == threshold
    missing = values.numel() - pruned - keep.sum()
    return keep | (ties & (ties.cumsum(0) <= missing))


def all_kept(network: nn.Module) -> Masks:
    """The masks of the dense network."""
    layers = prunable(network).items()
    return {n: torch.ones_like(layer.weight, dtype=torch.bool) for n, layer in layers}


def kept_count(masks: Mapping[str, Tensor]) -> int:
    """How many weights the masks keep."""
    return sum(int(mask.sum()) for mask in masks.values())


def total_count(masks: Mapping[str, Tensor]) -> int:
    """How many weights the masks cover."""
    return sum(mask.numel() for mask in masks.values())


def layer_densities(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of kept weights of each layer."""
    return {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()}


@torch.no_grad()
def apply_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of `network` to +0.0, in place.

    masked_fill, not a product: a mask times a negative weight is -0.0, and times inf it is NaN.
    Raises ValueError when the masks do not fit the layers.
    """
    layers = prunable(network)
    wrong = set(layers) ^ set(masks)
    wrong |= {n for n in set(layers) & set(masks) if layers[n].weight.shape != masks[n].shape}
    if wrong:
        raise ValueError(f"the masks do not fit the network: {', '.join(sorted(wrong)[:5])}")
    for name, mask in masks.items():
        layers[name].weight.masked_fill_(~mask, 0.0)


class MaskKeeper:
    """Holds the pruned weights of a training network at zero: call it after every step."""

    def __init__(self, network: nn.Module, masks: Mapping[str, Tensor]) -> None:
        layers = prunable(network)
        self._weights = [layers[name].weight for name in masks]
        self._factors = [mask.to(layers[name].weight.dtype) for name, mask in masks.items()]

    @torch.no_grad()
    def __call__(self) -> None:
        """Multiply the weights by their masks, in place."""
        torch._foreach_mul_(self._weights, self._factors)
