"""Loss and accuracy, as sums over images."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import together
from utils.errors import NumericError
from utils.seed import reseed

Seen = Callable[[Tensor, Tensor], None]  # logits and labels of a batch


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

    def named(self, view: str) -> dict[str, float]:
        """Mean loss and accuracy of a view, as the row of an epoch has them."""
        return {f"{view}_loss": self.mean_loss, f"{view}_accuracy": self.accuracy}


NOTHING = Counts(0.0, 0, 0)


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of (B, C) logits are highest at their label, or at the most likely one of (B, C)."""
    labels = labels.argmax(1) if labels.ndim == 2 else labels
    return (logits.detach().argmax(1) == labels).sum()


class Tally:
    """Adds up batches in place and on the device, so that an accelerator is not waited for."""

    def __init__(self, device: torch.device, start: Counts = NOTHING) -> None:
        # MPS has no double precision.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.tensor(start.loss, dtype=exact, device=device)
        self._correct = torch.tensor(start.correct, device=device)
        self._seen = torch.tensor(start.seen, device=device)

    def add(self, loss: Tensor, hits: Tensor, seen: Tensor | int) -> None:
        """One batch: its mean loss, how many are classified correctly, and how many there are."""
        self._loss += loss.detach().to(self._loss.dtype) * seen
        self._correct += hits
        self._seen += seen

    def of_all(self) -> Counts:
        """The sums of all processes, each of which has seen a share; waits for the device."""
        sums = torch.stack([self._loss, self._correct, self._seen])
        loss, correct, seen = together.total(sums).tolist()
        return Counts(loss, int(correct), int(seen))

    def counts(self) -> Counts:
        """The sums so far; waits for the device."""
        return Counts(float(self._loss), int(self._correct), int(self._seen))


@torch.no_grad()
def evaluate(
    model: nn.Module, view: Any, prompted: bool = False, also: Seen = lambda logits, labels: None
) -> Counts:
    """Loss and accuracy on a view, in eval mode; the mode of the model is put back.

    The default is the paper's protocol: clean images without the prompt. The draws of a `random`
    prompt depend on the batch alone, so a saved model measures the same again. `also` is shown each
    batch. Raises NumericError when the loss is not finite.
    """
    was_training = model.training
    model.eval()
    tally = Tally(next(model.parameters()).device)
    for step, (images, labels) in enumerate(view.batches()):
        reseed(images.device, "evaluate", step)
        logits = model(images, prompted=prompted)
        tally.add(F.cross_entropy(logits, labels), hits(logits, labels), len(labels))
        also(logits, labels)
    model.train(was_training)
    counts = tally.of_all()
    if not math.isfinite(counts.loss):
        raise NumericError(f"the measured loss is {counts.loss}: the network has diverged, "
                           "train it with a lower learning rate")
    return counts
