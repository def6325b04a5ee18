"""The only training loop. A stage says what moves, on which views, and what follows a step.

The search and fine-tuning are both a Stage (paper, algorithm 1): each iteration makes one update
for each view, a prompted batch first, then a clean one; the losses are never summed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.measure import Counts, Tally, evaluate
from utils.errors import NumericError, UsageError
from utils.optim import Optim
from utils.seed import reseed

PROMPTED, CLEAN, OTHER = "prompted", "clean", "other"
# Where each view's batches come from, and what tells its draws from those of its source.
_SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    PROMPTED: ("prompted", ()),
    CLEAN: ("clean", ()),
    OTHER: ("clean", ("other",)),  # the clean view in an order and with crops of its own
}


def nothing(*_: Any) -> None:
    """The hook that does nothing."""


@dataclass(frozen=True)
class Group:
    """Parameters that step together."""

    params: tuple[nn.Parameter, ...]
    optim: Optim
    name: str = ""  # of parameters that are not the model's, in states
    half: int | None = None  # the only half-step in which they move; None is every one


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
    """What a stage reports to, and where its states are kept (utils/level.py)."""

    key: tuple[object, ...]  # (seed, density): every random draw of the level starts from it

    def resume(self, stage: str) -> dict[str, Any] | None:
        """The newest state of this stage, or None."""

    def steps(self, steps: range, title: str) -> Iterator[int]:
        """Show the iterations; requests to stop wait for `stop_requested`."""

    def stop_requested(self) -> bool:
        """Whether to save and stop after this step."""

    def stop(self) -> None:
        """Raise Interrupted."""

    def wants_test(self, epoch: int, epochs: int) -> bool:
        """Whether the curves need the test accuracy after this epoch."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state."""

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Record one finished epoch."""

    def add_passes(self, passes: float) -> None:
        """Count forward and backward passes over the training set."""


def run_stage(model: nn.Module, stage: Stage, data: Any, log: Log) -> None:
    """Train `model` through the stage, going on from its newest state if there is one.

    Changes the model in place. Raises NumericError when the loss is not finite, Interrupted when
    the log asks to stop.
    """
    training = _Training(model, stage, data, log)
    try:
        for epoch in range(training.first_epoch, stage.epochs):
            training.run_epoch(epoch)
        training.take_best()
    finally:
        training.thaw()
    log.add_passes(stage.epochs * len(stage.views))


@dataclass
class _Best:
    """The best validation epoch so far."""

    correct: int = -1
    epoch: int = -1
    tensors: dict[str, Tensor] = field(default_factory=dict)


class _Training:
    """The moving parts of one stage."""

    def __init__(self, model: nn.Module, stage: Stage, data: Any, log: Log) -> None:
        self.model, self.stage, self.data, self.log = model, stage, data, log
        self._required = {p: p.requires_grad for p in model.parameters()}
        self._was_training = model.training
        self.moving = tuple(p for group in stage.groups for p in group.params)
        self._freeze()
        built = [g.optim.build(g.params, stage.epochs) for g in stage.groups]
        self.optimizers = [optimizer for optimizer, _ in built]
        self.schedules = [schedule for _, schedule in built]
        self.best = _Best()
        self.first_epoch = self.first_step = 0
        self.position = (0, 0)
        self._device = self.moving[0].device
        self._finite = torch.ones((), dtype=torch.bool, device=self._device)
        self.tallies = {view: Tally() for view in stage.views}
        state = log.resume(stage.name)
        if state is not None:
            self.load_state(state)

    def _freeze(self) -> None:
        for param in self.model.parameters():
            param.requires_grad_(False)
        for param in (*self.moving, *self.stage.needs_grad):
            param.requires_grad_(True)

    def thaw(self) -> None:
        """Put mode and requires_grad back as they were found and let the gradients go."""
        self.model.train(self._was_training)
        for param, required in self._required.items():
            param.requires_grad_(required)
            param.grad = None

    def run_epoch(self, epoch: int) -> None:
        """One epoch from the first step that is still to be made, then its record and state."""
        if self.first_step == 0:
            self.stage.before_epoch()
            self.tallies = {view: Tally() for view in self.stage.views}
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self._train(epoch)
        for schedule in self.schedules:
            schedule.step()
        self.first_step = 0
        row = {"stage": self.stage.name, "epoch": epoch, "lr": rates} | self._measure(epoch)
        self.log.epoch(row, self.model)
        self.log.save(self.state(epoch + 1, 0))

    def _train(self, epoch: int) -> None:
        self.model.train(not self.stage.frozen_statistics)
        start = self.log.key[:1] if self.stage.any_density else self.log.key
        key = (*start, self.stage.name, epoch)
        batches = {view: self._batches(view, key) for view in dict.fromkeys(self.stage.views)}
        length = min(len(getattr(self.data, _SOURCES[view][0])) for view in batches)
        title = f"{self.stage.name} {epoch + 1}/{self.stage.epochs}"
        for step in self.log.steps(range(self.first_step, length), title):
            self.position = (epoch, step)
            now = {view: next(stream) for view, stream in batches.items()}
            for half, view in enumerate(self.stage.views):
                reseed(self._device, *key, step, half)
                self._half_step(half, view, *now[view])
            if self.log.stop_requested():
                self.log.save(self.state(epoch, step + 1))
                self.log.stop()

    def _batches(self, view: str, key: tuple[object, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        source, own = _SOURCES[view]
        return iter(getattr(self.data, source).batches(*key, *own, start=self.first_step))

    def _half_step(self, half: int, view: str, images: Tensor, labels: Tensor) -> None:
        for param in (*self.moving, *self.stage.needs_grad):
            param.grad = None
        loss, logits = self._forward(view, images, labels)
        loss.backward()
        self.stage.before_step(half)
        for group, optimizer in zip(self.stage.groups, self.optimizers, strict=True):
            if group.half in (None, half):
                optimizer.step()
        self._watch(loss)
        self.stage.after_step()
        self.tallies[view].add(logits, labels, loss)

    def _forward(self, view: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        try:
            logits = self.model(images, prompted=view == PROMPTED)
        except ValueError as error:  # BatchNorm has no variance of one value
            raise UsageError(
                f"a batch of {len(labels)} cannot be trained on ({error}): choose a --batch_size "
                "that leaves no such rest"
            ) from error
        return F.cross_entropy(logits, labels), logits

    @torch.no_grad()
    def _watch(self, loss: Tensor) -> None:
        """Note whether loss and moving parameters are finite; the CPU is asked at once.

        A sum is finite if all its terms are, unless it overflows: `_require_finite` looks again.
        """
        sums = torch.stack([loss.detach(), *(param.sum() for param in self.moving)])
        self._finite = self._finite & torch.isfinite(sums).all()
        if loss.device.type == "cpu":
            self._require_finite(loss)

    def _require_finite(self, loss: Tensor | None = None) -> None:
        """Raise NumericError if anything was not finite since the last call."""
        if self._finite:
            return
        self._finite = torch.ones_like(self._finite)
        values = self._tensors() | ({} if loss is None else {"loss": loss.detach()})
        broken = [name for name, value in values.items() if not torch.isfinite(value).all()]
        if broken:
            _, density = self.log.key
            epoch, step = self.position
            raise NumericError(
                f"not finite: {', '.join(broken[::-1][:3])} at density {density}, stage "
                f"{self.stage.name}, epoch {epoch + 1}, step {step + 1}; the last finite state is "
                "kept: lower the learning rate"
            )

    def _measure(self, epoch: int) -> dict[str, Any]:
        """Training counts of each view; validation or test accuracy where the epoch has one."""
        row: dict[str, Any] = {}
        for view, tally in self.tallies.items():
            counts = tally.counts()
            row |= {f"{view}_loss": counts.mean_loss, f"{view}_accuracy": counts.accuracy}
        if self.data.val is not None:
            counts = evaluate(self.model, self.data.val)
            row |= {"val_loss": counts.mean_loss, "val_accuracy": counts.accuracy}
            self._note_best(counts, epoch)
        elif self.log.wants_test(epoch, self.stage.epochs):
            counts = evaluate(self.model, self.data.test)
            row |= {"test_loss": counts.mean_loss, "test_accuracy": counts.accuracy}
        return row

    def _note_best(self, counts: Counts, epoch: int) -> None:
        if self.stage.keep_best and counts.correct > self.best.correct:
            tensors = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
            self.best = _Best(counts.correct, epoch, tensors)

    @torch.no_grad()
    def take_best(self) -> None:
        """End with the best validation epoch, the earliest on ties, if one was kept."""
        own = self._tensors()
        for name, kept in self.best.tensors.items():
            own[name].copy_(kept)

    def _tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name: the moving parameters and the model's buffers."""
        names = {param: name for name, param in self.model.named_parameters()}
        moving = {names.get(p, g.name): p.detach() for g in self.stage.groups for p in g.params}
        carried = {names[param]: param.detach() for param in self.stage.carried}
        return moving | carried | dict(self.model.named_buffers())

    def state(self, epoch: int, step: int) -> dict[str, Any]:
        """What a restart needs and cannot compute; `epoch` and `step` are the next ones.

        Raises NumericError when something in it is not finite.
        """
        self._require_finite()
        return {
            "stage": self.stage.name,
            "epoch": epoch,
            "step": step,
            "tensors": self._tensors(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "tallies": {view: tuple(tally.counts()) for view, tally in self.tallies.items()},
            "best": vars(self.best),
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`: the masked weights follow from it through `after_step`."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state["tensors"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            optimizer._opt_called = True  # before the stop; else torch warns at an epoch's end
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.tallies = {view: Tally(*sums) for view, sums in state["tallies"].items()}
        self.best = _Best(**state["best"])
        self.first_epoch, self.first_step = state["epoch"], state["step"]
        self.stage.after_step()
