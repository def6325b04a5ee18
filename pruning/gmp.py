"""Gradual magnitude pruning (GMP; Zhu and Gupta 2017): train, and prune more and more meanwhile.

The density falls along a cubic from 1 to the one asked for, and what is pruned does not come back.
It is reached after 68.75 % of the steps, as in the authors' code; the rest of the search, and
fine-tuning, train the network under the last mask. The ranking is global.
"""

from pruning.granularity import PATTERN, WEIGHT
from pruning.masks import Masks, all_kept
from pruning.method import Method, Search
from pruning.moving_mask import MovingMask

ENDS = 0.6875  # the share of the search after which the density is reached
ROUNDS = 100  # times that a mask is chosen, if there are as many steps


def density_at(share: float, final: float) -> float:
    """The density when a share of the search is done (Zhu and Gupta, equation 1)."""
    left = 1 - min(share / ENDS, 1.0)
    return final + (1 - final) * left**3


def find_masks(search: Search) -> Masks:
    """The masks at the end; the network keeps the weights that were trained under them."""
    moving = MovingMask(search, all_kept(search.model.network))

    def before_step(done: int, of: int) -> None:
        if done % max(1, of // ROUNDS) == 0:
            share = (done + 1) / of
            moving.take(search.keep(moving.magnitudes(), density_at(share, search.density)))

    return moving.train_by_magnitude(before_step)


GMP = Method(
    find_masks,
    trains=True,
    granularities=(WEIGHT, PATTERN),
    curve=("#6699CC", "h"),
)
