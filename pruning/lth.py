"""Lottery tickets by iterative magnitude pruning (LTH; Frankle and Carbin 2019).

Rounds that remove a fifth of the remaining weights, the last one landing exactly on the density
asked for. Each round ranks |w| of the network trained under the round's mask and rewinds to the
pre-trained weights, as in the paper's runs. A level goes on from the denser level before it,
whose fine-tuning is the training of its last round.
"""

import torch

from pruning.dense import dense_phase, trained_weights, weight_stage
from pruning.masks import MaskKeeper, Masks, Scores, all_kept, apply_masks, keep_top
from pruning.method import Method, Search, Trained

KEPT_PER_ROUND = 0.8


def find_masks(search: Search) -> Masks:
    """The masks of the last round; the network is rewound and masked."""
    search.remap()
    before = search.previous()
    if before is None:
        before = Trained(1.0, all_kept(search.model.network), dense_phase(search))
    steps = rounds(before.density, search.density)
    masks, weights = before.masks, before.weights
    for step in steps:
        masks = keep_top(alive_magnitudes(weights, masks), step)
        if step != steps[-1]:
            weights = train_round(search, masks, step)
    apply_masks(search.model.network, masks)
    search.remap()
    return masks


def rounds(start: float, end: float) -> list[float]:
    """Densities of the rounds from `start` down to exactly `end`."""
    steps = []
    while (start := start * KEPT_PER_ROUND) > end * (1 + 1e-9):
        steps.append(start)
    return [*steps, end]


def alive_magnitudes(weights: Scores, masks: Masks) -> Scores:
    """|w| of the kept weights; -1 for the pruned ones, so that none of them comes back."""
    return {
        name: torch.where(masks[name].to(weight.device), weight.abs(), -1.0)
        for name, weight in weights.items()
    }


def train_round(search: Search, masks: Masks, density: float) -> Scores:
    """Weights trained from the rewound network under the masks of a round."""
    network = search.model.network
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    apply_masks(network, masks)
    stage = weight_stage(search, f"round-{density:.6g}", after_step=MaskKeeper(network, masks))
    weights = trained_weights(search, stage.name, masks, stage)
    network.load_state_dict(start)
    return weights


LTH = Method(find_masks, chained=True)
