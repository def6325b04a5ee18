"""RigL (Evci et al. 2020): sparse from the first step; weights are dropped, and others grown.

The first mask is random, its layer densities those of Erdos-Renyi-Kernel. From time to time each
layer drops the smallest of its weights and grows as many where the gradient of the dense network
is largest; those begin at 0 and step at once. The share that moves falls along a cosine to 0 at
three quarters of the search.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.masks import Masks, prunable
from pruning.method import Method, Search
from pruning.moving_mask import MovingMask
from pruning.selection import require_room
from utils.counts import count_at
from utils.seed import generator

MOVED, ENDS = 0.3, 0.75  # share of a layer's weights at first; of the search until none moves
ROUNDS = 100  # times that weights move in a whole search, if it has as many steps


def find_masks(search: Search) -> Masks:
    """The masks at the end; the network keeps the weights that were trained under them."""
    weights = prunable(search.model.network)
    counts = layer_counts(weights, search.density, search.floor)
    moving = MovingMask(search, random_masks(weights, counts, search.log.key))
    share = 0.0  # of the weights that this iteration moves

    def before_step(done: int, of: int) -> None:
        nonlocal share
        due = done > 0 and done % max(1, of // ROUNDS) == 0 and done < ENDS * of
        share = MOVED / 2 * (1 + math.cos(math.pi * done / (ENDS * of))) if due else 0.0

    @torch.no_grad()
    def gradients(half: int) -> None:
        for name, weight in moving.weights.items() if share and half == 0 else ():
            if weight.grad is not None:
                moved(weight, weight.grad, moving.masks[name], share)

    return moving.train(before_step, gradients)


def layer_counts(
    weights: Mapping[str, Tensor], density: float, floor: float = 0.0
) -> dict[str, int]:
    """How many weights each layer keeps: Erdos-Renyi-Kernel (RigL, section 3), an exact total.

    A layer's density goes with the sum of its dimensions over their product; no layer has more
    than all of its weights, or less than `floor` of them. Raises UsageError when the floors ask
    for more than the density.
    """
    sizes = {name: weight.numel() for name, weight in weights.items()}
    require_room(list(sizes.values()), density, floor)
    kept, fixed = count_at(density, sum(sizes.values())), {}
    while True:
        raw = {n: sum(weight.shape) for n, weight in weights.items() if n not in fixed}
        scale = (kept - sum(fixed.values())) / max(1, sum(raw.values()))
        full = {n: sizes[n] for n, part in raw.items() if part * scale > sizes[n]}
        thin = {n: count_at(floor, sizes[n]) for n in raw}
        thin = {n: least for n, least in thin.items() if raw[n] * scale < least}
        if not full | thin:
            break
        fixed |= full or thin
    counts = {n: fixed[n] if n in fixed else int(raw[n] * scale) for n in sizes}
    for name in sorted(raw, key=lambda n: int(raw[n] * scale) - raw[n] * scale):
        if sum(counts.values()) < kept and counts[name] < sizes[name]:
            counts[name] += 1
    return counts


def random_masks(
    weights: Mapping[str, Tensor], counts: Mapping[str, int], key: tuple[object, ...]
) -> Masks:
    """Masks that keep so many random weights of each layer."""
    draw, masks = generator(*key, "rigl"), {}
    for name, weight in weights.items():
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[torch.randperm(weight.numel(), generator=draw)[: counts[name]]] = True
        masks[name] = mask.view(weight.shape).to(weight.device)
    return masks


def moved(weight: Tensor, grad: Tensor, mask: Tensor, share: float) -> None:
    """Drop the smallest `share` of a layer's weights and grow as many, in place (algorithm 1)."""
    count = int(share * int(mask.sum()))
    size = weight.abs().where(mask, math.inf).flatten()
    dropped = size.topk(count, largest=False).indices
    flat = mask.view(-1)
    flat[dropped] = False
    grown = grad.abs().flatten().where(~flat, -1.0).topk(count).indices
    flat[grown] = True
    new = torch.zeros_like(flat)
    new[grown] = True
    new[dropped] = False  # what is grown again keeps its weight
    weight.view(-1).masked_fill_(new | ~flat, 0.0)


RIGL = Method(find_masks, learns=True, trains=True, curve=("#DDCC77", "*"))
