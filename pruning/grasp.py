"""GraSP (Wang et al. 2020): keep the weights whose removal lowers the gradient flow most.

S = -w * (H g) on a class-balanced set, logits divided by a temperature; the highest S go. The
mask is the thresholded one and the labels are mapped; the authors' code redraws every layer's
mask at random with GraSP's layer densities, so their published row is random pruning with
GraSP's layer ratios. Neither draws the head anew, as the original does.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.granularity import PATTERN, WEIGHT
from pruning.masks import Scores, prunable
from pruning.method import Method, Search, eval_mode, gradients_of, no_phase, one_shot
from utils.seed import key_seed

TEMPERATURE = 200.0  # as in the original's code and the paper's runs
MOST_SAMPLES = 512  # of the whole set, as the paper's runs
MOST_PER_CLASS = 25


def scores(search: Search) -> Scores:
    """-S = w * (H g), so that the highest are kept."""
    weights = prunable(search.model.network)
    clean = search.data.clean
    with eval_mode(search.model):
        images, labels = balanced_set(search)
        batches = halves_in_batches(images, labels, -(-clean.images // len(clean)))
        losses = [partial(_loss, search, number, *batch) for number, batch in enumerate(batches)]
        flow = hessian_gradient(losses, list(weights.values()))
    search.log.add_passes(3 * len(labels) / clean.images)
    pairs = zip(weights.items(), flow, strict=True)
    return {name: weight.detach() * product for (name, weight), product in pairs}


def balanced_set(search: Search) -> tuple[Tensor, Tensor]:
    """The same number of images of every class, ordered by class, from the view of the search.

    The first ones in its order: (N, 3, h, h) and (N,). A class with fewer gives what it has.
    """
    batches = search.batches("grasp")
    first = next(batches)
    with torch.no_grad():
        classes = search.model(first[0][:1], prompted=search.prompted).shape[1]
    quota = max(1, min(MOST_SAMPLES // classes, MOST_PER_CLASS))
    chosen: list[list[Tensor]] = [[] for _ in range(classes)]
    for images, labels in chain([first], batches):
        for image, label in zip(images, labels.tolist(), strict=True):
            if len(chosen[label]) < quota:
                chosen[label].append(image.clone())
        if all(len(of_class) == quota for of_class in chosen):
            break
    classes_of = [label for label, of_class in enumerate(chosen) for _ in of_class]
    return torch.stack(list(chain(*chosen))), torch.tensor(classes_of, device=images.device)


def halves_in_batches(
    images: Tensor, labels: Tensor, size: int
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """The two halves of a set in batches of at most `size`, each with its share of its half.

    In eval mode the shares' losses add up to each half's mean loss, in less memory.
    """
    middle = (len(labels) // 2,)
    for half in zip(images.tensor_split(middle), labels.tensor_split(middle), strict=True):
        for x, y in zip(*(part.split(size) for part in half), strict=True):
            if len(y):
                yield x, y, len(y) / len(half[1])


def hessian_gradient(
    losses: Sequence[Callable[[], Tensor]], weights: Sequence[Tensor]
) -> list[Tensor]:
    """H g, a tensor per weight, with the gradient and the Hessian of the sum of the losses.

    g is computed first and held constant, so that only one graph is alive at a time.
    """
    fixed = [torch.zeros_like(weight) for weight in weights]
    for loss in losses:
        grads = gradients_of(loss(), weights)
        torch._foreach_add_(fixed, grads)
    products = [torch.zeros_like(weight) for weight in weights]
    for loss in losses:
        grads = gradients_of(loss(), weights, create_graph=True)
        inner = sum((grad * first).sum() for grad, first in zip(grads, fixed, strict=True))
        torch._foreach_add_(products, gradients_of(inner, weights))
    return products


def _loss(search: Search, number: int, images: Tensor, labels: Tensor, share: float) -> Tensor:
    torch.manual_seed(key_seed(*search.log.key, "grasp", number))  # places a `random` prompt
    logits = search.model(images, prompted=search.prompted)
    return share * F.cross_entropy(logits / TEMPERATURE, labels)


GRASP = Method(  # its scores have signs, which do not add up to one of a channel
    one_shot(scores),
    granularities=(WEIGHT, PATTERN),
    search_passes=no_phase,
    curve=("#44AA99", "P"),
)
