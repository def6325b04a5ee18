"""SynFlow (Tanaka et al. 2020): path products of the all-positive network, in 100 rounds.

Data-free: the input is one image of ones; the authors' code feeds a normalised batch with signs.
It runs on a float64 copy, since float32 overflows to NaN in a ResNet-50, with ReLU for ReLU6,
whose saturation would zero every gradient of a MobileNetV2.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pruning.granularity import PATTERN, WEIGHT
from pruning.masks import Masks, Scores, all_kept, apply_masks, keep_top, prunable
from pruning.method import Method, Search, gradients_of, no_phase
from utils.errors import note

Keep = Callable[[Scores, float], Masks]
ROUNDS = 100  # SynFlow, section 6


def find_masks(search: Search) -> Masks:
    """Masks after 100 rounds (SynFlow, algorithm 1). A batch is read for the size of the images."""
    images, _ = next(search.batches("synflow"))
    network, size = search.model.network, images.shape[-1]
    if any(isinstance(module, nn.LayerNorm) for module in network.modules()):
        note("SynFlow's scores are conserved from layer to layer in networks of convolutions, "
             "BatchNorm and ReLU; LayerNorm and attention do not keep them")
    return search.use(synflow_masks(network, search.density, size, search.keep))


def synflow_masks(
    network: nn.Module, density: float, size: int, keep: Keep = keep_top
) -> Masks:
    """The masks after rounds of density d^(t/100), t = 1..100, for one image of ones.

    `size` is its side in pixels, `keep` makes masks of scores at a density. `network` stays as it
    is.
    """
    device = next(network.parameters()).device
    positive = positive_copy(network, "cpu" if device.type == "mps" else device)  # no doubles there
    ones = torch.ones(1, 3, size, size).to(next(positive.parameters()))
    masks = all_kept(positive)
    below = {name: _below_zero(mask) for name, mask in masks.items()}
    for step in range(1, ROUNDS + 1):
        scores = path_scores(positive, ones)
        # The pruned ones score 0 like dead paths do: below that, they cannot come back.
        alive = {name: torch.where(masks[name], scores[name], below[name]) for name in masks}
        masks = keep(alive, density ** (step / ROUNDS))
        apply_masks(positive, masks)
    return {name: mask.to(device) for name, mask in masks.items()}


def positive_copy(network: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """A float64 copy in eval mode: absolute values everywhere, ReLU6 replaced by ReLU."""
    positive = copy.deepcopy(network).to(device, torch.float64).eval()
    for tensor in positive.state_dict().values():
        tensor.abs_()
    for module in list(positive.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    return positive


def path_scores(positive: nn.Module, ones: Tensor) -> Scores:
    """w * dR/dw with R the sum of all outputs, not negative (SynFlow, section 5)."""
    weights = prunable(positive)
    total = positive(ones).sum()
    grads = gradients_of(total, weights.values())
    pairs = zip(weights.items(), grads, strict=True)
    return {name: (weight.detach() * grad).abs() for (name, weight), grad in pairs}


def _below_zero(mask: Tensor) -> Tensor:
    """Different numbers in [-2, -1]: numpy's selection is slow where many are equal."""
    return torch.linspace(-2, -1, mask.numel(), device=mask.device).view(mask.shape)


SYNFLOW = Method(
    find_masks,
    granularities=(WEIGHT, PATTERN),
    search_passes=no_phase,
    curve=("#999933", "<"),
)
