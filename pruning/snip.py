"""SNIP (Lee et al. 2019): |w * dL/dw| on one training batch, the dense network in eval mode.

The weights are the pre-trained ones and the loss is taken on the mapped logits. The authors' code
compares downstream labels with the raw 1000 logits, that is with unrelated ImageNet classes, and
its published numbers carry that; it also leaves an emptied layer its highest weight.
"""

import torch
import torch.nn.functional as F

from pruning.granularity import KINDS
from pruning.masks import Scores, prunable
from pruning.method import Method, Search, eval_mode, gradients_of, no_phase, one_shot
from utils.seed import key_seed


def scores(search: Search) -> Scores:
    """Connection sensitivity |dL/dmask| at mask 1, unnormalised, since the sum ranks nothing."""
    weights = prunable(search.model.network)
    images, labels = next(search.batches("snip"))
    torch.manual_seed(key_seed(*search.log.key, "snip"))  # places a `random` prompt
    with eval_mode(search.model):
        loss = F.cross_entropy(search.model(images, prompted=search.prompted), labels)
        grads = gradients_of(loss, weights.values())
    search.log.add_passes(len(labels) / search.data.clean.images)
    pairs = zip(weights.items(), grads, strict=True)
    return {name: (weight.detach() * grad).abs() for (name, weight), grad in pairs}


SNIP = Method(
    one_shot(scores), granularities=KINDS, search_passes=no_phase, curve=("#CC6677", "X")
)
