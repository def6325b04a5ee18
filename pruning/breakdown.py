"""What one accuracy hides: classes, confusions, near misses, and how sure the network is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pruning.measure import outputs
from utils import together

BINS = 15  # of confidence (Guo et al. 2017)
NEAR = 5  # guesses of top-5, which says something for more than ten classes


@torch.no_grad()
def confusion(model: Any, view: Any, prompted: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the images of a view, on the CPU: int64 (C, C) true by guessed class, int64 (C,)
    images of each class among whose five best guesses it is, float64 (3, BINS) images, sums of
    confidence, and correct ones by confidence."""
    classes = model.classes
    pairs = torch.zeros(classes * classes, dtype=torch.int64)
    near, bins = torch.zeros(classes, dtype=torch.int64), torch.zeros(3, BINS, dtype=torch.float64)
    for logits, labels in outputs(model, view, prompted):
        chances = logits.softmax(1).cpu()
        (sure, said), labels = chances.max(1), labels.cpu()
        pairs += (labels * classes + said).bincount(minlength=len(pairs))
        found = (chances.topk(min(NEAR, classes)).indices == labels[:, None]).any(1)
        near += labels[found].bincount(minlength=classes)
        place = (sure * BINS).long().clamp(max=BINS - 1)
        for row, weights in enumerate((torch.ones_like(sure), sure, said == labels)):
            bins[row] += place.bincount(weights.double(), minlength=BINS)
    for sums in (pairs, near, bins):
        together.total(sums)
    return pairs.view(classes, classes), near, bins


def numbers(names: Sequence[str], pairs: Tensor, near: Tensor, bins: Tensor) -> dict[str, Any]:
    """Accuracies in percent, to four decimals, and the expected calibration error in [0, 1].

    Top-5 only for more than ten classes; a class without images has None.
    """
    seen, right = pairs.sum(1).tolist(), pairs.diagonal().tolist()
    shares = [round(100 * r / s, 4) if s else None for r, s in zip(right, seen, strict=True)]
    labels = names or list(map(str, range(len(seen))))
    found = {
        "images": sum(seen), "accuracy": round(100 * sum(right) / max(sum(seen), 1), 4),
        "calibration_error": round(float((bins[2] - bins[1]).abs().sum() / bins[0].sum()), 6),
        "classes": dict(zip(labels, shares, strict=True)),
    }  # fmt: skip
    if len(seen) > 2 * NEAR:
        found["top5"] = round(100 * int(near.sum()) / max(sum(seen), 1), 4)
    return found
