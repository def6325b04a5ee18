"""The exponential moving average of what a stage trains (Polyak and Juditsky 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from utils.tensors import require_like

Tensors = Mapping[str, Tensor]


class Average:
    """The average of parameters and BatchNorm's statistics, by name; empty without a decay.

    The decay after k steps is min(decay, (1 + k) / (10 + k)), so that a short stage has one too. A
    pruned weight is 0 in all of it, and stays 0.
    """

    def __init__(self, decay: float, now: Tensors) -> None:
        """It begins as `now`."""
        self.decay = decay
        self.tensors = {n: t.detach().clone() for n, t in now.items()} if decay else {}

    @torch.no_grad()
    def follow(self, now: Tensors, step: int) -> None:
        """Move towards `now` after a step, whose number begins at 0."""
        if not self.tensors:
            return
        floats = [name for name, average in self.tensors.items() if average.is_floating_point()]
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        move([self.tensors[name] for name in floats], [now[name] for name in floats], step)
        for name in self.tensors.keys() - floats:  # batch counters and label maps
            self.tensors[name].copy_(now[name])

    @torch.no_grad()
    def swap(self, now: Tensors) -> None:
        """Exchange the average and what it is of, in place."""
        for name, average in self.tensors.items():
            held = now[name].clone()
            now[name].copy_(average)
            average.copy_(held)

    @contextmanager
    def shown(self, now: Tensors) -> Iterator[None]:
        """Within, the model has the average."""
        self.swap(now)
        try:
            yield
        finally:
            self.swap(now)

    def load(self, saved: Tensors) -> None:
        """Go on from a state. Raises ValueError when it is of other tensors."""
        require_like(self.tensors, saved)
        for name, average in self.tensors.items():
            average.copy_(saved[name])
