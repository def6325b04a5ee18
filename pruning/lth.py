"""Lottery tickets by iterative magnitude pruning (LTH; Frankle and Carbin 2019).

Rounds that remove a fifth of the remaining weights, the last one landing exactly on the density
asked for. Each round ranks |w| of the network trained under the round's mask and rewinds to the
pre-trained weights, not to an early or a random state, as in the paper's runs. A level goes on
from the denser level before it, whose fine-tuning is the training of its last round. The
authors' lists of densities are such rounds, with a few that remove more than a fifth.
"""

from pruning.dense import dense_phase, prunable_weights, train_and_rewind, weight_stage
from pruning.granularity import PATTERN, WEIGHT
from pruning.masks import MaskKeeper, Masks, Scores, all_kept
from pruning.method import Method, Search, Trained

KEPT_PER_ROUND = 0.8  # Frankle and Carbin, section 2: 20 % go in each round


def find_masks(search: Search) -> Masks:
    """The masks of the last round; the network is rewound and masked.

    Later levels need the dense phase too, which is read back: their prompt starts from its prompt.
    """
    network = search.model.network
    dense = dense_phase(search)
    before = search.previous() or Trained(1.0, all_kept(network), dense)
    masks, weights = before.masks, before.weights
    steps = rounds(before.density, search.density)
    for step in steps:
        masks = search.keep(alive_magnitudes(dense, weights, masks), step)
        if step != steps[-1]:
            weights = train_round(search, masks, step)
    return search.use(masks)


def rounds(start: float, end: float) -> list[float]:
    """Densities of the rounds from `start` down to exactly `end`."""
    steps = []
    while (start := start * KEPT_PER_ROUND) > end * (1 + 1e-9):
        steps.append(start)
    return [*steps, end]


def alive_magnitudes(like: Scores, weights: Scores, masks: Masks) -> Scores:
    """|w| of the kept weights; -1 for the pruned ones, so that none of them comes back.

    What was read from a level's file moves to the device of `like`, in its order.
    """
    return {
        name: weights[name].to(dense.device).abs().where(masks[name].to(dense.device), -1.0)
        for name, dense in like.items()
    }


def train_round(search: Search, masks: Masks, density: float) -> Scores:
    """Weights trained under a round's masks; the network is left masked, with rewound weights.

    It may stay masked, since the masks of later rounds lie within these.
    """
    network = search.model.network
    search.use(masks)
    stage = weight_stage(
        search, f"round-{density:.6g}", teach=search.teach,
        renew=MaskKeeper(network, masks),
    )
    return prunable_weights(network, train_and_rewind(search, stage, masks))


def search_passes(epochs: int, updates: int, before: float, density: float) -> int:
    """The dense phase and every round but the last, which is the level's fine-tuning."""
    return epochs * updates * len(rounds(before, density))


LTH = Method(
    find_masks,
    chained=True,
    granularities=(WEIGHT, PATTERN),
    search_passes=search_passes,
    curve=("#117733", "D"),
)
