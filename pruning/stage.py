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


Teach = Callable[[Tensor], Tensor]  # images without the prompt to logits of the target classes


def nothing(*_: Any) -> None:
    """The hook that does nothing."""


@dataclass(frozen=True)
class Group:
    """Parameters that step together, by an optimizer of their own."""

    params: tuple[nn.Parameter, ...]
    optim: Optim
    name: str = ""  # of parameters that are not the model's, in states
    only_half: int | None = None  # the only half-step of its optimizer; None is both
    memory: Tensor | None = None  # what they are views of: looked at and saved instead of them

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that moves, as few tensors."""
        return self.params if self.memory is None else (self.memory,)


@dataclass(frozen=True)
class Stage:
    """One training phase: `groups` move, `needs_grad` has gradients alone, the rest is frozen.

    A half-step is one update on the batch of one view. Its hooks: `gradients(half)` comes after
    the backward pass and may turn gradients into others; `renew()` comes after the optimizers and
    sets the weights that follow from what moved. `renew` also follows a restored state, so a second
    call must change nothing. `before_step(done, of)` comes before each iteration, with the number
    of those that were made and of all that the stage makes.
    """

    name: str
    epochs: int
    groups: tuple[Group, ...]
    views: tuple[str, ...] = (PROMPTED, CLEAN)  # (CLEAN, CLEAN) is the same batch twice
    needs_grad: tuple[nn.Parameter, ...] = ()  # gradients wanted by a hook; no optimizer holds them
    any_density: bool = False  # draws start from the seed alone: one result for all densities
    frozen_statistics: bool = False  # BatchNorm and dropout as in evaluation
    keep_best: bool = False  # end with the best validation epoch, where there is a validation view
    carried: tuple[nn.Parameter, ...] = ()  # frozen, yet in the states: no need to go further back
    teach: Teach | None = None  # logits to learn from beside the labels
    recorded: bool = True  # as CUDA graphs: no hook decides anything by a number of the step
    before_epoch: Callable[[], None] = nothing
    before_step: Callable[[int, int], None] = nothing
    gradients: Callable[[int], None] = nothing
    renew: Callable[[], None] = nothing


class Log(Protocol):
    """What a stage reports to, and where its states are kept."""

    key: tuple[object, ...]  # (seed, density): every random draw of the level starts from it

    def resume(self, stage: str) -> dict[str, Any] | None:
        """The newest state of this stage, which begins now, or None."""

    def steps(self, steps: range, title: str) -> Iterator[int]:
        """Show the iterations; requests to stop wait for `answer_stop`."""

    def hold(self) -> AbstractContextManager[None]:
        """Put a stop off to the end of the block."""

    def answer_stop(self) -> None:
        """Between two steps: raise Interrupted if a stop was asked for."""

    def wants_state(self, done: int | None, epochs: int) -> bool:
        """Whether to save a state after `done` epochs of `epochs`; None is in mid-epoch."""

    def wants_test(self, epoch: int, epochs: int) -> bool:
        """Whether the curves need the test accuracy after this epoch."""

    def save(self, state: dict[str, Any]) -> None:
        """Save a state."""

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Record one finished epoch."""

    def add_passes(self, passes: float) -> None:
        """Count forward and backward passes over the training set."""
