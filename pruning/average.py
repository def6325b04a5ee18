"""The exponential moving average of what a stage trains (Polyak and Juditsky 1992)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

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
        floats = [name for name, average in self.tensors.items() if average.is_floating_point()]
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        move([self.tensors[name] for name in floats], [now[name] for name in floats], step)
        for name in self.tensors.keys() - floats:  # batch counters and label maps
            self.tensors[name].copy_(now[name])

    def put_into(self, now: Tensors) -> None:
        """Write the average over what it is of, in place."""
        _copy(self.tensors, now)

    @contextmanager
    def shown(
        self, now: Tensors, hold: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[None]:
        """Within, the model has the average. A stop waits until it has its own values again."""
        own = {name: now[name].clone() for name in self.tensors}
        try:
            self.put_into(now)
            yield
        finally:
            with hold():
                _copy(own, now)

    def load(self, saved: Tensors) -> None:
        """Go on from a state. Raises ValueError when it is of other tensors."""
        require_like(self.tensors, saved)
        _copy(saved, self.tensors)


@torch.no_grad()
def _copy(source: Tensors, target: Tensors) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
