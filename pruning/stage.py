"""A stage says what moves, on which views, and what follows a step; training.py runs it.

The search and fine-tuning are both a Stage (paper, algorithm 1): each iteration makes one update
for each view, a prompted batch first, then a clean one; the losses are never summed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from utils.optim import Optim

PROMPTED, CLEAN, OTHER = "prompted", "clean", "other"


def nothing(*_: Any) -> None:
    """The hook that does nothing."""


@dataclass(frozen=True)
class Group:
    """Parameters that step together."""

    params: tuple[nn.Parameter, ...]
    optim: Optim
    name: str = ""  # of parameters that are not the model's, in states
    half: int | None = None  # the only half-step in which they move; None is every one
    memory: Tensor | None = None  # what they are views of: looked at and kept instead of them

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that moves, as few tensors."""
        return self.params if self.memory is None else (self.memory,)


@dataclass(frozen=True)
class Stage:
    """One training phase. Parameters outside `groups` and `needs_grad` are frozen."""

    name: str
    epochs: int
    groups: tuple[Group, ...]
    views: tuple[str, ...] = (PROMPTED, CLEAN)  # (CLEAN, CLEAN) is the same batch twice
    needs_grad: tuple[nn.Parameter, ...] = ()  # gradients wanted by a hook; no optimizer holds them
    any_density: bool = False  # draws start from the seed alone: one result for all densities
    frozen_statistics: bool = False  # BatchNorm and dropout as in evaluation
    keep_best: bool = False  # end with the best validation epoch, where there is a validation view
    carried: tuple[nn.Parameter, ...] = ()  # frozen, yet in the states: no need to go further back
    before_epoch: Callable[[], None] = nothing
    before_step: Callable[[int], None] = nothing  # given the half-step, before the optimizers
    after_step: Callable[[], None] = nothing  # must be repeatable: it also follows a restored state


class Log(Protocol):
    """What a stage reports to, and where its states are kept (runfolder/level.py)."""

    key: tuple[object, ...]  # (seed, density): every random draw of the level starts from it

    def resume(self, stage: str) -> dict[str, Any] | None:
        """The newest state of this stage, or None."""

    def steps(self, steps: range, title: str) -> Iterator[int]:
        """Show the iterations; requests to stop wait for `stop_requested`."""

    def hold(self) -> AbstractContextManager[None]:
        """Put a stop off to the end of the block."""

    def stop_requested(self) -> bool:
        """Whether to stop after this step."""

    def stop(self) -> None:
        """Raise Interrupted."""

    def state_late(self) -> bool:
        """Whether a state is wanted in the middle of an epoch."""

    def state_due(self, done: int, epochs: int) -> bool:
        """Whether a state is wanted after `done` epochs of `epochs`; always after the last."""

    def wants_test(self, epoch: int, epochs: int) -> bool:
        """Whether the curves need the test accuracy after this epoch."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state."""

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Record one finished epoch."""

    def add_passes(self, passes: float) -> None:
        """Count forward and backward passes over the training set."""
