"""The best validation epoch of a stage."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruning.measure import Counts
from pruning.state import tensors_of

if TYPE_CHECKING:
    from pruning.training import Training


class Best:
    """The epoch with the most correct validation images, the earliest on ties, and its tensors."""

    def __init__(self, correct: int = -1, epoch: int = -1, tensors: dict | None = None) -> None:
        self.correct, self.epoch = correct, epoch
        self.tensors: dict[str, Tensor] = tensors or {}

    def offer(self, training: "Training", counts: Counts) -> None:
        """Take a copy of this epoch if its stage wants the best and it is better than before."""
        if training.stage.keep_best and counts.correct > self.correct:
            self.correct, self.epoch = counts.correct, training.epoch
            self.tensors = {n: t.detach().clone() for n, t in tensors_of(training).items()}

    @torch.no_grad()
    def restore(self, training: "Training") -> None:
        """Put the best epoch back into the model, if one was taken."""
        now = tensors_of(training)
        for name, tensor in self.tensors.items():
            now[name].copy_(tensor)
