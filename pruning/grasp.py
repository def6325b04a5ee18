"""GraSP (Wang et al. 2020): keep the weights whose removal lowers the gradient flow most.

S = -w * (H g) on a class-balanced set, logits divided by a temperature; the highest S go. The
mask is the thresholded one and the labels are mapped; the authors' code redraws every layer's
mask at random with GraSP's layer densities, so their published row is random pruning with
GraSP's layer ratios.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.masks import Scores, prunable
from pruning.method import Method, Search, eval_mode, one_shot

TEMPERATURE = 200.0  # GraSP, section 5.1
MOST_SAMPLES = 512  # of the whole set, as the paper's runs
MOST_PER_CLASS = 25


def scores(search: Search) -> Scores:
    """-S = w * (H g), so that the highest are kept (GraSP, eq. 8)."""
    weights = {name: layer.weight for name, layer in prunable(search.model.network).items()}
    images, labels = balanced_set(search)
    with eval_mode(search.model):
        flow = hessian_gradient(search, (images, labels), list(weights.values()))
    search.log.add_passes(3 * len(labels) / search.data.clean.images)
    pairs = zip(weights.items(), flow, strict=True)
    return {name: weight.detach() * product for (name, weight), product in pairs}


def balanced_set(search: Search) -> tuple[Tensor, Tensor]:
    """The same number of images of every class, ordered by class, from the view of the search.

    A class with fewer images gives what it has.
    """
    classes = len(search.model.label_map) if search.model.label_map is not None else None
    images, labels = zip(*search.batches("grasp"), strict=True)
    all_labels = torch.cat(labels)
    classes = classes or int(all_labels.max()) + 1
    quota = max(1, min(MOST_SAMPLES // classes, MOST_PER_CLASS))
    rows = [(all_labels == c).nonzero().flatten()[:quota] for c in range(classes)]
    chosen = torch.cat(rows)
    return torch.cat(images)[chosen], all_labels[chosen]


def hessian_gradient(
    search: Search, samples: tuple[Tensor, Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """H g, a tensor per weight: g over both halves of the set, H summed over the halves."""
    halves = [
        (images, labels)
        for images, labels in zip(*(part.tensor_split(2) for part in samples), strict=True)
        if len(labels)
    ]
    fixed = [torch.zeros_like(weight) for weight in weights]
    for half in halves:
        grads = torch.autograd.grad(_loss(search, half), weights)
        for total, grad in zip(fixed, grads, strict=True):
            total += grad
    products = [torch.zeros_like(weight) for weight in weights]
    for half in halves:
        grads = torch.autograd.grad(_loss(search, half), weights, create_graph=True)
        inner = sum((g * f).sum() for g, f in zip(grads, fixed, strict=True))
        for total, part in zip(products, torch.autograd.grad(inner, weights), strict=True):
            total += part
    return products


def _loss(search: Search, half: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = half
    logits = search.model(images, prompted=search.prompted)
    return F.cross_entropy(logits / TEMPERATURE, labels)


GRASP = Method(one_shot(scores))
