"""Memory for batches that is used again once nobody holds the last batch in it.

Fresh memory for a batch of 256 images of 224 px costs more in page faults than cropping them.
"""

import weakref

import torch
from torch import Tensor


class Buffers:
    """Float32 batches; a batch that somebody still holds is never written again."""

    def __init__(self, keep: int = 3) -> None:
        self._keep = keep
        self._blocks: list[Tensor] = []
        self._loans: list[weakref.ref] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised CPU tensor of this shape that shares memory with no living tensor."""
        free = [i for i, loan in enumerate(self._loans) if loan() is None]
        for i in free:
            if self._blocks[i].shape == shape:
                return self._lend(i)
        if free:
            self._blocks[free[0]] = torch.empty(shape)
            return self._lend(free[0])
        if len(self._blocks) == self._keep:
            return torch.empty(shape)
        self._blocks.append(torch.empty(shape))
        self._loans.append(lambda: None)
        return self._lend(len(self._blocks) - 1)

    def _lend(self, i: int) -> Tensor:
        # The storage of a tensor made from an array holds that array until the last view of the
        # batch (an autograd graph included) is gone: the array's life is the loan.
        array = self._blocks[i].numpy()
        self._loans[i] = weakref.ref(array)
        return torch.from_numpy(array)
