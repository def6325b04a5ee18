"""Accuracies after an epoch, and the best validation epoch of a stage."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruning.measure import Counts, evaluate
from pruning.state import tensors_of
from utils.errors import NumericError

if TYPE_CHECKING:
    from pruning.training import Training


class Best:
    """The epoch with the most correct validation images, the earliest on ties, and its tensors."""

    def __init__(self, correct: int = -1, epoch: int = -1, tensors: dict | None = None) -> None:
        self.correct, self.epoch = correct, epoch
        self.tensors: dict[str, Tensor] = tensors or {}

    def measure(self, training: "Training", row: dict[str, Any]) -> Counts | None:
        """Add the validation or the test accuracy to an epoch's row, where the epoch has one.

        The validation images choose the best epoch; the test images choose nothing. Returns the
        counts on the test images.
        """
        data, test = training.data, None
        try:
            if data.val is not None:
                counts = evaluate(training.model, data.val)
                row |= counts.named("val")
                self._offer(training, counts)
            elif training.log.wants_test(training.epoch, training.stage.epochs):
                test = evaluate(training.model, data.test)
                row |= test.named("test")
        except NumericError as error:
            raise NumericError(f"{error}, at {training.place()}") from error
        return test

    def _offer(self, training: "Training", counts: Counts) -> None:
        """Take a copy of this epoch if its stage wants the best and it is better than before."""
        if training.stage.keep_best and counts.correct > self.correct:
            self.correct, self.epoch = counts.correct, training.epoch
            self.tensors = {n: t.detach().clone() for n, t in tensors_of(training).items()}

    @torch.no_grad()
    def restore(self, training: "Training") -> None:
        """Put the best epoch back into the model, if one was taken."""
        if self.tensors:
            for name, tensor in tensors_of(training).items():
                tensor.copy_(self.tensors[name])
            training.stage.renew()
