"""Stratified choices of images, the same for every seed and every machine."""

import torch
from torch import Tensor

from utils.seed import generator


def stratified(labels: Tensor, count: int, *key: object) -> tuple[Tensor, Tensor]:
    """Choose `count` of the images with these labels (int64, N): (chosen rows, other rows), sorted.

    Every class gives its share, rounded down; the images still missing come from the classes
    with the largest remainders (ties: the lowest class first).
    """
    totals = torch.bincount(labels)
    shares = totals * count // len(labels)
    remainders = totals * count % len(labels)
    extra = remainders.argsort(descending=True, stable=True)[: count - int(shares.sum())]
    shares[extra] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        rows = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=generator(*key, label))
        chosen[rows[order[:share]]] = True
    return chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]
