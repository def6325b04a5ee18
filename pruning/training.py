"""The only training loop. Read it from the top: stage, epoch, steps, half-step.

Beside it stand what a reader of the method may skip: states (state.py), the watch for numbers that
are not finite (watch.py), accuracies after an epoch and the best one (best.py), half-steps as CUDA
graphs (replay.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from pruning.average import Average
from pruning.best import Best
from pruning.measure import Counts, Tally, hits
from pruning.replay import replayed
from pruning.stage import CLEAN, OTHER, PROMPTED, Log, Stage
from pruning.state import resume, save, tensors_of
from pruning.watch import Watch
from utils import together
from utils.errors import DataError, Interrupted
from utils.loss_scale import LossScale
from utils.ranks import world
from utils.seed import reseed

# The data view that each view of a stage draws from, with an order of images of its own, and what
# sets further draws from it apart.
SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    PROMPTED: ("prompted", ()),
    CLEAN: ("clean", ()),
    OTHER: ("clean", ("other",)),  # the clean view in an order and with crops of its own
}


class Training:
    """A stage under way: what moves, what is counted, and the epoch and step that come next."""

    def __init__(self, model: nn.Module, stage: Stage, data: Any, log: Log) -> None:
        self.model, self.stage, self.data, self.log = model, stage, data, log
        self.steps = min(len(getattr(data, SOURCES[view][0])) for view in stage.views)
        built = [g.optim.build(g.params, stage.epochs, self.steps) for g in stage.groups]
        self.by_step = stage.groups[0].optim.by_step  # learning rates change, not by the epoch
        self.optimizers = [optimizer for optimizer, _ in built]
        self.schedules = [schedule for _, schedule in built]
        moving = tuple(param for group in stage.groups for param in group.params)
        self.with_grad, self.device = (*moving, *stage.needs_grad), moving[0].device
        self.scale = LossScale(self.with_grad, model.precision.scales_loss)
        self.watch, self.best = Watch(self.device), Best()
        self.average = Average(model.recipe.ema * stage.keep_best, tensors_of(self))
        self.tallies = {view: Tally(self.device) for view in stage.views}
        self.epoch = self.step = 0
        self.saved = (0, 0)  # epoch and step of the newest state

    def follow_schedules(self, due: bool) -> None:
        """Set the learning rates of the next step, or epoch, if it is `due`."""
        for schedule in self.schedules if due else ():
            schedule.step()

    def place(self) -> str:
        """Where the stage is, for a message."""
        density = f"density {self.log.key[-1]}"
        return f"{density}, stage {self.stage.name}, epoch {self.epoch + 1}"


def run_stage(model: nn.Module, stage: Stage, data: Any, log: Log) -> Counts | None:
    """Train `model` in place through the stage, from its newest state if there is one.

    Returns the counts on the test images of the model as it ends, if the last epoch measured them.
    A stop, or an image that cannot be read, leaves a state of what has been trained. Raises
    NumericError when a number is not finite, Interrupted when a stop was asked for.
    """
    training, test = Training(model, stage, data, log), None
    several = world() > 1  # which agree on the step that a stop comes after
    with gradients_only(model, training.with_grad), log.hold() if several else nullcontext():
        resume(training)
        try:
            while training.epoch < stage.epochs:
                test = run_epoch(training)
        except (Interrupted, DataError) as error:
            if isinstance(error, Interrupted) or not several:  # of the others none knows of it
                with log.hold():
                    save(training)
            raise
        training.average.put_into(tensors_of(training))
        training.best.restore(training)
    log.add_passes(stage.epochs * len(stage.views))
    return test


@contextmanager
def gradients_only(model: nn.Module, with_grad: tuple[nn.Parameter, ...]) -> Iterator[None]:
    """Within, these parameters alone have gradients; mode and requires_grad are put back after."""
    before, was_training = {p: p.requires_grad for p in model.parameters()}, model.training
    model.requires_grad_(False)
    for param in with_grad:
        param.requires_grad_(True)
    try:
        yield
    finally:
        model.train(was_training)
        for param, required in before.items():
            param.requires_grad_(required)
            param.grad = None


def run_epoch(training: Training) -> Counts | None:
    """The steps of an epoch that are still to be made, its record, and a state if one is due.

    Returns the counts on the test images if they were measured.
    """
    stage, log = training.stage, training.log
    if training.step == 0:
        stage.before_epoch()
        training.tallies = {view: Tally(training.device) for view in stage.views}
    rates = [optimizer.param_groups[0]["lr"] for optimizer in training.optimizers]
    run_steps(training)
    together.require_same(tensors_of(training), training.place())
    row = {"stage": stage.name, "epoch": training.epoch + 1, "lr": rates}
    for view, tally in training.tallies.items():
        row |= tally.counts().named(view)
    with training.average.shown(tensors_of(training), log.hold):
        test = training.best.measure(training, row)
    training.watch.require_finite(training)
    with log.hold():
        training.follow_schedules(not training.by_step)
        training.epoch, training.step = training.epoch + 1, 0
        log.epoch(row, training.model)
        if log.wants_state(training.epoch, stage.epochs):
            save(training)
    return test


def run_steps(training: Training) -> None:
    """Each iteration makes a half-step on each view's batch (paper, algorithm 1)."""
    stage, log = training.stage, training.log
    training.model.train(not stage.frozen_statistics)
    start = log.key[:1] if stage.any_density else log.key
    key = (*start, stage.name, training.epoch)
    streams = {view: batches(training, view, key) for view in dict.fromkeys(stage.views)}
    title = f"{stage.name} epoch {training.epoch + 1} of {stage.epochs}"
    work = partial(half_step, training)
    # A recording holds its learning rates: those that change by the step are not recorded.
    plain = nullcontext(work) if training.by_step or not stage.recorded else None
    with plain or replayed(work, training.model, training.with_grad) as update:
        for step in log.steps(range(training.step, training.steps), title):
            batch = {view: next(stream) for view, stream in streams.items()}
            done = training.epoch * training.steps + step
            stage.before_step(done, stage.epochs * training.steps)
            for half, view in enumerate(stage.views):
                reseed(training.device, *key, step, half)  # what the model draws, such as dropout
                update(half, view, *batch[view])
            training.step = step + 1
            if training.average.tensors:
                training.average.follow(tensors_of(training), done)
            training.follow_schedules(training.by_step)
            log.answer_stop()
            if log.wants_state(None, stage.epochs):
                save(training)
    # Each BatchNorm has seen its share.
    together.as_the_first([*training.model.buffers(), *training.average.tensors.values()])


def batches(
    training: Training, view: str, key: tuple[object, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The epoch's batches of a view, from the next step on."""
    source, apart = SOURCES[view]
    return iter(getattr(training.data, source).batches(*key, *apart, start=training.step))


def parts_of(
    training: Training, view: str, images: Tensor, labels: Tensor
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Mean loss, hits and images of each part of a batch: it is one, unless --accumulate says."""
    recipe, teach = training.model.recipe, training.stage.teach
    for some, truth in recipe.parts(images, labels):
        logits = training.model(some, prompted=view == PROMPTED)
        loss = recipe.loss(logits, truth, teach and teach(some))
        yield loss, hits(logits, truth), len(truth)


def half_step(training: Training, half: int, view: str, images: Tensor, labels: Tensor) -> None:
    """One update on one batch: forward, backward, gradients, step, renew.

    What has no gradient stays: the prompt moves in the prompted half-step alone. A GPU replays it
    (replay.py): what outlives it is changed in place, and no number of it is looked at here.
    """
    stage = training.stage
    for param in training.with_grad:
        param.grad = None
    # Under torchrun each process has a share of the batch: all sums are those of the whole from
    # here on.
    losses = parts_of(training, view, images, labels)
    loss, correct, seen = training.scale.backward(losses, len(labels))
    stage.gradients(half)
    pairs = zip(training.optimizers, stage.groups, strict=True)
    moving = [(optim, group) for optim, group in pairs if group.only_half in (None, half)]
    for _, group in moving:
        training.model.recipe.clip(group.params)
    training.scale.step([optim for optim, _ in moving])
    training.watch.look(training, loss)
    stage.renew()
    training.tallies[view].add(loss, correct, seen)
