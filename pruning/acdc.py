"""AC/DC (Peste et al. 2021): dense and sparse training by turns, so that pruned weights come back.

The search has twenty parts. The first two are dense, then sparse and dense ones take turns, and
the last three are sparse, the proportions of the paper's runs on ImageNet. A sparse part begins
with the highest |w| over the whole network; a dense one lets the pruned weights move from 0.
"""

from pruning.granularity import PATTERN, WEIGHT
from pruning.masks import Masks, all_kept
from pruning.method import Method, Search
from pruning.moving_mask import MovingMask

PARTS, WARM_UP, LAST = 20, 2, 17  # ten epochs of a hundred; sparse from the 85th on


def is_sparse(part: int) -> bool:
    """Whether a part of the search, 0 to 19, trains a sparse network; -1 is before it."""
    return part >= LAST or (part >= WARM_UP and (part - WARM_UP) % 2 == 0)


def find_masks(search: Search) -> Masks:
    """The masks of the last part; the network keeps the weights that were trained under them."""
    dense = all_kept(search.model.network)
    moving = MovingMask(search, dense)

    def before_step(done: int, of: int) -> None:
        sparse, before = (is_sparse(-(-PARTS * step // of) - 1) for step in (done + 1, done))
        if sparse != before:
            moving.take(search.keep(moving.magnitudes()) if sparse else dense)

    return moving.train_by_magnitude(before_step)


ACDC = Method(
    find_masks,
    trains=True,
    granularities=(WEIGHT, PATTERN),
    curve=("#661100", "d"),
)
