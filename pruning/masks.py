"""Masks beside an ordinary network: which weights can be pruned, which are kept, and how many."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pruning.selection import lift_best, require_finite, require_room, select_top

# ATen's kernel for the gradient of a threshold: one pass, where a product would leave -0.0 and NaN.
_zero_where_small = torch.ops.aten.threshold_backward.grad_input

Scores = dict[str, Tensor]  # by parameter name, float, the shape of the weight; higher is kept
Masks = dict[str, Tensor]  # by parameter name, bool, the shape of the weight; True is kept

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# MultiheadAttention holds its projections itself: packed, or apart where their widths differ.
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that can be pruned, by parameter name, in the order of the network.

    They are those of convolutions, linear layers and attention, head and shortcuts included;
    biases, norms and embeddings are never pruned. A weight that several layers share counts once,
    under its first name. Raises ValueError when there is nothing to prune.
    """
    weights: dict[int, tuple[str, nn.Parameter]] = {}
    for layer, module in network.named_modules():
        for name in _prunable_names(module):
            weight = getattr(module, name)
            if isinstance(weight, nn.Parameter):
                weights.setdefault(id(weight), (f"{layer}.{name}".lstrip("."), weight))
    if not weights:
        raise ValueError("the network has no convolution and no linear layer to prune")
    return dict(weights.values())


def _prunable_names(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return PROJECTIONS
    return ("weight",) if isinstance(module, LAYERS) else ()


def keep_top(scores: Mapping[str, Tensor], density: float, floor: float = 0.0) -> Masks:
    """Keep the highest scores over all layers together, an exact count of them.

    total - int((1 - density) * total) weights stay; of equal scores at the threshold the first
    in order stay. Of each layer, n - int((1 - floor) * n) of its best stay whatever their rank.
    Raises NumericError when a score is not finite, UsageError when the floor asks for more weights
    than the density.
    """
    sizes = [tensor.numel() for tensor in scores.values()]
    require_room(sizes, density, floor)
    flat = torch.cat([tensor.flatten() for tensor in scores.values()])
    require_finite(flat)
    return in_shapes(select_top(lift_best(flat, sizes, floor), density), scores)


def in_shapes(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of a flat tensor (N,) in the shapes of the tensors in `like`, by their names.

    Raises RuntimeError when these have not N values together.
    """
    parts = flat.split([tensor.numel() for tensor in like.values()])
    pairs = zip(like.items(), parts, strict=True)
    return {name: part.view(tensor.shape) for (name, tensor), part in pairs}


def all_kept(network: nn.Module) -> Masks:
    """The masks of the dense network."""
    weights = prunable(network).items()
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights}


def kept_count(masks: Mapping[str, Tensor]) -> int:
    """How many weights the masks keep."""
    return sum(int(mask.sum()) for mask in masks.values())


def total_count(masks: Mapping[str, Tensor]) -> int:
    """How many weights the masks cover."""
    return sum(mask.numel() for mask in masks.values())


def layer_densities(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of each weight tensor that is kept; 0 of one without a value."""
    return {name: int(mask.sum()) / max(1, mask.numel()) for name, mask in masks.items()}


def require_fit(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless each weight that can be pruned has a mask, and nothing else has."""
    wrong = set(weights) ^ set(masks)
    wrong |= {n for n in set(weights) & set(masks) if weights[n].shape != masks[n].shape}
    if wrong:
        raise ValueError(f"the masks do not fit the network: {', '.join(sorted(wrong)[:5])}")


@torch.no_grad()
def apply_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of `network` to +0.0, in place.

    masked_fill, not a product: a mask times a negative weight is -0.0, and times inf it is NaN.
    Raises ValueError when the masks do not fit the weights.
    """
    weights = prunable(network)
    require_fit(masks, weights)
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0.0)


class MaskKeeper:
    """Holds the pruned weights of a training network at zero: call it after every step."""

    def __init__(self, network: nn.Module, masks: Mapping[str, Tensor]) -> None:
        weights = prunable(network)
        self._weights = [weights[name] for name in masks]
        self._factors = [mask.to(weights[name].dtype) for name, mask in masks.items()]

    @torch.no_grad()
    def __call__(self) -> None:
        """Set the pruned weights to +0.0, in place."""
        for weight, factor in zip(self._weights, self._factors, strict=True):
            _zero_where_small(weight, factor, 0.5, grad_input=weight)
