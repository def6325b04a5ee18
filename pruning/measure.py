"""Loss and accuracy, as sums over images."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import NumericError
from utils.remember import remembered
from utils.seed import reseed


class Counts(NamedTuple):
    """Sums over images, so that batches add."""

    loss: float
    correct: int
    seen: int

    @property
    def accuracy(self) -> float:
        """Top-1, percent."""
        return 100 * self.correct / max(self.seen, 1)

    @property
    def mean_loss(self) -> float:
        """Cross-entropy per image."""
        return self.loss / max(self.seen, 1)


class Tally:
    """Adds up batches where they are, so that an accelerator is not waited for."""

    def __init__(self, loss: float = 0.0, correct: int = 0, seen: int = 0) -> None:
        self._loss: Tensor | float = loss
        self._correct: Tensor | int = correct
        self._seen = seen

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """One batch: (B, C) logits, (B,) labels, mean loss."""
        # MPS has no double precision.
        exact = loss.detach() if loss.device.type == "mps" else loss.detach().double()
        self._loss = self._loss + exact * len(labels)
        self._correct = self._correct + (logits.detach().argmax(1) == labels).sum()
        self._seen += len(labels)

    def counts(self) -> Counts:
        """The sums so far."""
        return Counts(float(self._loss), int(self._correct), self._seen)


def measured(model: nn.Module, view: Any, prompted: bool = False) -> Counts:
    """`evaluate`, unless a model of the same tensors was measured on this view before."""
    what = ("evaluate", prompted)
    return remembered(view, model, what, lambda: evaluate(model, view, prompted))


@torch.no_grad()
def evaluate(model: nn.Module, view: Any, prompted: bool = False) -> Counts:
    """Loss and accuracy on a view, in eval mode; the mode found is put back.

    The default is the paper's protocol: clean images without the prompt. The draws of a `random`
    prompt depend on the batch alone, so a saved model measures the same again. Raises NumericError
    when the loss is not finite.
    """
    was_training = model.training
    model.eval()
    tally = Tally()
    for step, (images, labels) in enumerate(view.batches()):
        reseed(images.device, "evaluate", step)
        logits = model(images, prompted=prompted)
        tally.add(logits, labels, F.cross_entropy(logits, labels))
    model.train(was_training)
    counts = tally.counts()
    if not math.isfinite(counts.loss):
        raise NumericError(f"the measured loss is {counts.loss}: the network has diverged")
    return counts

