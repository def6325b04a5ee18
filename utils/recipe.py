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
    distill_share: float = flag(
        0.5, "share of the loss that is to be as the network of --distill",
        parse=number(float, 0, 1))
    distill_temperature: float = flag(
        4.0, "what its logits, and those that learn from it, are divided by",
        parse=number(float, 0.01))
    ema: float = flag(
        0.0, "end fine-tuning with the moving average of what it trains, by this decay a step, as "
        "0.99, which grows to it; 0 for none", parse=number(float, 0, 0.99999))
    clip_grad: float = flag(
        0.0, "most that the gradients of weights, scores or prompt, each together, may have as "
        "their norm; 0 is any", parse=number(float, 0))
    accumulate: int = flag(
        1, "compute each batch in so many parts and add their gradients up, for less memory: the "
        "same images in the same steps; BatchNorm sees a part at a time", parse=number(int, 1))

    def loss(self, logits: Tensor, labels: Tensor, taught: Tensor | None = None) -> Tensor:
        """Cross-entropy of logits (B, C) to train on, the mean over the batch.

        With the logits `taught` (B, C) of another network, a share of it is
        T^2 * KL(softmax(taught / T) || softmax(logits / T)) instead (Hinton et al. 2015, section
        2.1; T^2 keeps its gradients as large at any temperature).
        """
        smoothing = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        hard = F.cross_entropy(logits, labels, **smoothing)
        if taught is None:
            return hard
        heat = self.distill_temperature
        cool, wanted = ((of.float() / heat).log_softmax(1) for of in (logits, taught))
        soft = F.kl_div(cool, wanted, reduction="batchmean", log_target=True) * heat**2
        return hard.lerp(soft, self.distill_share)

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch as `accumulate` parts, or as many as it has images."""
        size = -(-len(labels) // self.accumulate)
        return zip(images.split(size), labels.split(size), strict=True)

    def clip(self, params: Iterable[nn.Parameter]) -> None:
        """Shorten the gradients of these parameters, in place, to a norm of `clip_grad` at most."""
        if self.clip_grad:
            clip_grad_norm_(params, self.clip_grad)
