"""How a batch becomes one update in any stage: its loss, its parts, the length of its step."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from utils.config import flag, number


@dataclass(frozen=True)
class Recipe:
    """The flags, and what they do."""

    label_smoothing: float = flag(
        0.0, "share of the target that all classes get alike, in training (Szegedy et al. 2016)",
        parse=number(float, 0, 0.99))
    clip_grad: float = flag(
        0.0, "most that the gradients of weights, scores or prompt, each together, may have as "
        "their norm; 0 is any", parse=number(float, 0))
    accumulate: int = flag(
        1, "compute each batch in so many parts and add their gradients up, for less memory: the "
        "same images in the same steps; BatchNorm sees a part at a time", parse=number(int, 1))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of logits (B, C) to train on, the mean over the batch."""
        smoothing = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        return F.cross_entropy(logits, labels, **smoothing)

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch as `accumulate` parts, or as many as it has images."""
        size = -(-len(labels) // self.accumulate)
        return zip(images.split(size), labels.split(size), strict=True)

    def clip(self, params: Iterable[nn.Parameter]) -> None:
        """Shorten the gradients of these parameters, in place, to a norm of `clip_grad` at most."""
        if self.clip_grad:
            clip_grad_norm_(params, self.clip_grad)
