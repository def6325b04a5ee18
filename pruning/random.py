"""Random masks: every weight is as likely as another to be kept.

The count over the network is exact; the authors keep each weight independently with probability
d, so that theirs is right in expectation only.
"""

import torch

from pruning.granularity import KINDS
from pruning.masks import Scores, prunable
from pruning.method import Method, Search, no_phase, one_shot
from utils.seed import generator


def scores(search: Search) -> Scores:
    """Uniform in [0, 1)."""
    draw = generator(*search.log.key, "random")
    weights = prunable(search.model.network)
    return {
        name: torch.rand(weight.shape, generator=draw).to(weight.device)
        for name, weight in weights.items()
    }


RANDOM = Method(
    one_shot(scores), granularities=KINDS, search_passes=no_phase, curve=("#888888", ">")
)
