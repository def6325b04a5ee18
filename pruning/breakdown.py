"""What one accuracy hides: classes, confusions, near misses, and how sure the network is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from utils import together

BINS = 15  # of confidence (Guo et al. 2017)
NEAR = 5  # guesses of top-5, which says something for more than ten classes


class Breakdown:
    """Sums over images, on the CPU, which `evaluate` fills batch by batch.

    `pairs` is int64 (C, C), true by guessed class; `near` int64 (C,), images of each class among
    whose five best guesses it is; `bins` float64 (3, BINS), images, sums of confidence, and correct
    ones by confidence.
    """

    def __init__(self, classes: int) -> None:
        self.pairs = torch.zeros(classes, classes, dtype=torch.int64)
        self.near = torch.zeros(classes, dtype=torch.int64)
        self.bins = torch.zeros(3, BINS, dtype=torch.float64)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """One batch of logits (B, C) with its labels (B,)."""
        classes, chances, labels = len(self.near), logits.softmax(1).cpu(), labels.cpu()
        said = logits.argmax(1).cpu()
        sure = chances.gather(1, said[:, None])[:, 0]
        pairs = (labels * classes + said).bincount(minlength=classes**2)
        self.pairs += pairs.view(classes, classes)
        found = (chances.topk(min(NEAR, classes)).indices == labels[:, None]).any(1)
        self.near += labels[found].bincount(minlength=classes)
        place = (sure * BINS).long().clamp(0, BINS - 1)  # a chance that is NaN, too
        for row, weights in enumerate((torch.ones_like(sure), sure, said == labels)):
            self.bins[row] += place.bincount(weights.double(), minlength=BINS)

    def of_all(self) -> "Breakdown":
        """Turn the sums into those of all processes, each of which has seen a share."""
        for sums in (self.pairs, self.near, self.bins):
            together.total(sums)
        return self

    def numbers(self, names: Sequence[str]) -> dict[str, Any]:
        """Accuracies in percent, to four decimals, and the expected calibration error in [0, 1].

        Top-5 only for more than ten classes; a class without images has None.
        """
        seen, right = self.pairs.sum(1).tolist(), self.pairs.diagonal().tolist()
        shares = [round(100 * r / s, 4) if s else None for r, s in zip(right, seen, strict=True)]
        labels, images = names or list(map(str, range(len(seen)))), sum(seen)
        gaps = float((self.bins[2] - self.bins[1]).abs().sum() / self.bins[0].sum())
        found = {
            "images": images, "accuracy": round(100 * sum(right) / max(images, 1), 4),
            "calibration_error": round(gaps, 6),
            "classes": dict(zip(labels, shares, strict=True)),
        }  # fmt: skip
        if len(seen) > 2 * NEAR:
            found["top5"] = round(100 * int(self.near.sum()) / max(images, 1), 4)
        return found
