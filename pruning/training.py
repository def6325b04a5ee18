"""The only training loop: it runs a stage, and goes on with one that was stopped."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.measure import Counts, Tally, measured
from pruning.stage import CLEAN, OTHER, PROMPTED, Log, Stage
from utils.errors import Interrupted, NumericError, UsageError
from utils.loss_scale import LossScale
from utils.optim import load_optimizer
from utils.seed import reseed
from utils.tensors import require_like, understood

# Where each view's batches come from, and what tells its draws from those of its source.
_SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    PROMPTED: ("prompted", ()),
    CLEAN: ("clean", ()),
    OTHER: ("clean", ("other",)),  # the clean view in an order and with crops of its own
}


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
        graded = (*self.moving, *stage.needs_grad)
        self.scale = LossScale(graded, self.optimizers, model.precision.scales_loss)
        self.best = _Best()
        self.first_epoch = self.first_step = 0
        self.position = (0, 0)  # epoch and step of the last update
        self._next = self._kept = (0, 0)  # epoch and step that come next, and those of the state
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
        """One epoch from the first step that is still to be made, then its record and state.

        A stop comes between two steps, or at any moment outside of them: what has been trained
        since the last state is kept then.
        """
        self._next = (epoch, self.first_step)
        try:
            self._run_epoch(epoch)
        except Interrupted:
            with self.log.hold():
                self._keep()
            raise

    def _run_epoch(self, epoch: int) -> None:
        if self.first_step == 0:
            self.stage.before_epoch()
            self.tallies = {view: Tally() for view in self.stage.views}
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self._train(epoch)
        row = {"stage": self.stage.name, "epoch": epoch, "lr": rates} | self._measure(epoch)
        self._require_finite()
        with self.log.hold():
            for schedule in self.schedules:
                schedule.step()
            self.first_step, self._next = 0, (epoch + 1, 0)
            self.log.epoch(row, self.model)
            if self.log.state_due(epoch + 1, self.stage.epochs):
                self._keep()

    def _keep(self) -> None:
        """Save the state of now, unless it is the one that was saved last."""
        if self._kept != self._next:
            state = self.state()
            self._kept = self._next
            self.log.save(state)

    def _train(self, epoch: int) -> None:
        self.model.train(not self.stage.frozen_statistics)
        start = self.log.key[:1] if self.stage.any_density else self.log.key
        key = (*start, self.stage.name, epoch)
        batches = {view: self._batches(view, key) for view in dict.fromkeys(self.stage.views)}
        length = min(len(getattr(self.data, _SOURCES[view][0])) for view in batches)
        title = f"{self.stage.name} epoch {epoch + 1} of {self.stage.epochs}"
        for step in self.log.steps(range(self.first_step, length), title):
            self.position = (epoch, step)
            now = {view: next(stream) for view, stream in batches.items()}
            for half, view in enumerate(self.stage.views):
                reseed(self._device, *key, step, half)
                self._half_step(half, view, *now[view])
            self._next = (epoch, step + 1)
            if self.log.stop_requested():
                self.log.stop()
            if self.log.state_late():
                self._keep()

    def _batches(self, view: str, key: tuple[object, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        source, own = _SOURCES[view]
        return iter(getattr(self.data, source).batches(*key, *own, start=self.first_step))

    def _half_step(self, half: int, view: str, images: Tensor, labels: Tensor) -> None:
        for param in (*self.moving, *self.stage.needs_grad):
            param.grad = None
        loss, logits = self._forward(view, images, labels)
        self.scale.backward(loss)
        self.stage.before_step(half)
        pairs = zip(self.stage.groups, self.optimizers, strict=True)
        self.scale.step([optimizer for group, optimizer in pairs if group.half in (None, half)])
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
        moved = (tensor for group in self.stage.groups for tensor in group.tensors)
        sums = torch.stack([loss.detach(), *(tensor.sum() for tensor in moved)])
        self._finite = self._finite & torch.isfinite(sums).all()
        if loss.device.type == "cpu":
            self._require_finite(loss)

    def _require_finite(self, loss: Tensor | None = None) -> None:
        """Raise NumericError if anything was not finite since the last call."""
        self.scale.require_steps()
        if self._finite:
            return
        self._finite = torch.ones_like(self._finite)
        values = self._tensors() | ({} if loss is None else {"loss": loss.detach()})
        broken = [name for name, value in values.items() if not torch.isfinite(value).all()]
        if broken:
            epoch, step = self.position
            kept = "the last finite state is kept" if any(self._kept) else "nothing was saved yet"
            raise NumericError(
                f"not finite: {', '.join(broken[::-1][:3])} at {self._place(epoch)}, step "
                f"{step + 1}; {kept}: lower the learning rate"
            )

    def _place(self, epoch: int) -> str:
        _, density = self.log.key
        return f"density {density}, stage {self.stage.name}, epoch {epoch + 1}"

    def _measure(self, epoch: int) -> dict[str, Any]:
        """Training counts of each view; validation or test accuracy where the epoch has one."""
        row: dict[str, Any] = {}
        for view, tally in self.tallies.items():
            counts = tally.counts()
            row |= {f"{view}_loss": counts.mean_loss, f"{view}_accuracy": counts.accuracy}
        if self.data.val is not None:
            counts = self._evaluate(self.data.val, epoch)
            row |= {"val_loss": counts.mean_loss, "val_accuracy": counts.accuracy}
            self._note_best(counts, epoch)
        elif self.log.wants_test(epoch, self.stage.epochs):
            counts = self._evaluate(self.data.test, epoch)
            row |= {"test_loss": counts.mean_loss, "test_accuracy": counts.accuracy}
        return row

    def _evaluate(self, view: Any, epoch: int) -> Counts:
        try:
            return measured(self.model, view)
        except NumericError as error:
            raise NumericError(f"{error} at {self._place(epoch)}") from error

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
        moving = {names.get(p, g.name): p.detach() for g in self.stage.groups for p in g.tensors}
        carried = {names[param]: param.detach() for param in self.stage.carried}
        return moving | carried | dict(self.model.named_buffers())

    def state(self) -> dict[str, Any]:
        """What a restart needs and cannot compute; its epoch and step are the next ones.

        Raises NumericError when something in it is not finite.
        """
        self._require_finite()
        epoch, step = self._next
        return {
            "stage": self.stage.name,
            "epoch": epoch,
            "step": step,
            "tensors": self._tensors(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scale": self.scale.state(),
            "tallies": {view: tuple(tally.counts()) for view, tally in self.tallies.items()},
            "best": vars(self.best),
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`: the masked weights follow from it through `after_step`.

        Raises VPNsError with the state's `path` when it is not of this model and stage.
        """
        with understood(state.get("path", "the state")):
            best = state["best"]
            kept = _Best(int(best["correct"]), int(best["epoch"]), dict(best["tensors"]))
            self._load_tensors(state["tensors"], kept)
            self.first_epoch, self.first_step = self._kept = state["epoch"], state["step"]
            if self.first_epoch > self.stage.epochs:
                raise ValueError(f"epoch {self.first_epoch} of {self.stage.epochs}")
            self._load_optimizers(state)
            for view in self.tallies:
                loss, correct, seen = state["tallies"][view]
                self.tallies[view] = Tally(float(loss), int(correct), int(seen))
        self.stage.after_step()

    def _load_tensors(self, found: Mapping[str, Tensor], best: _Best) -> None:
        own = self._tensors()
        require_like(own, found)
        if best.tensors:
            require_like(own, best.tensors)
        moved = own.keys() - dict(self.model.named_buffers()).keys()
        if not all(torch.isfinite(found[name]).all() for name in moved):
            raise ValueError("not finite")
        for name, tensor in own.items():
            tensor.copy_(found[name])
        self.model.check_map()
        self.best = best

    def _load_optimizers(self, state: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        for schedule in self.schedules:
            schedule.load_state_dict(
                {"last_epoch": self.first_epoch, "_step_count": self.first_epoch + 1}
            )
        self.scale.load(dict(state.get("scale", {})))  # states of the first version have none
