"""Training states: all that a stage needs to go on in another process, bit for bit."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruning.measure import Counts, Tally
from utils.files import is_amount
from utils.optim import load_optimizer
from utils.tensors import require_like, understood
from utils.together import require_same

if TYPE_CHECKING:
    from pruning.training import Training


def tensors_of(training: "Training") -> dict[str, Tensor]:
    """All that training changes, by name: the moving parameters and the model's buffers."""
    stage, model = training.stage, training.model
    names = {param: name for name, param in model.named_parameters()}
    moving = {names.get(p, g.name): p.detach() for g in stage.groups for p in g.tensors}
    carried = {names[param]: param.detach() for param in stage.carried}
    return moving | carried | dict(model.named_buffers())


def save(training: "Training") -> None:
    """Save the state of now, unless it is the one that was saved last."""
    now = (training.epoch, training.step)
    if training.saved != now:
        state = state_of(training)
        training.saved = now
        training.log.save(state)


def state_of(training: "Training") -> dict[str, Any]:
    """What a restart needs and cannot compute; its epoch and step are the next ones.

    Raises NumericError when something in it is not finite.
    """
    training.watch.require_finite(training)
    moving = tensors_of(training)
    norms = dict(training.model.named_buffers())  # which differ in mid-epoch; the first's count
    require_same({n: t for n, t in moving.items() if n not in norms}, training.place())
    return {
        "stage": training.stage.name,
        "epoch": training.epoch,
        "step": training.step,
        "tensors": moving,
        "optimizers": [optimizer.state_dict() for optimizer in training.optimizers],
        "scale": training.scale.state(),
        "tallies": {view: tuple(tally.counts()) for view, tally in training.tallies.items()},
        "best": vars(training.best),
        "average": training.average.tensors,
    }


def resume(training: "Training") -> None:
    """Go on from the newest state of the stage, if there is one.

    The masked weights follow from it by `renew`. Raises VPNsError that names the state's file when
    it is not of this model and stage.
    """
    state = training.log.resume(training.stage.name)
    if state is None:
        return
    with understood(state.get("path", "the state")), torch.no_grad():
        load_tensors(training, state["tensors"], state["best"])
        training.average.load(state.get("average", {}))  # which older states lack
        training.epoch, training.step = training.saved = state["epoch"], state["step"]
        if training.epoch > training.stage.epochs:
            raise ValueError(f"epoch {training.epoch} of {training.stage.epochs}")
        load_optimizers(training, state)
        for view in training.tallies:
            loss, correct, seen = state["tallies"][view]
            if not (is_amount(loss) and 0 <= correct <= seen):
                raise ValueError("tallies that no batches have")
            counts = Counts(float(loss), int(correct), int(seen))
            training.tallies[view] = Tally(training.device, counts)
    with torch.no_grad():
        training.stage.renew()


def load_tensors(
    training: "Training", saved: Mapping[str, Tensor], best: Mapping[str, Any]
) -> None:
    """Put saved tensors into the model and the best epoch; ValueError when they do not fit."""
    now = tensors_of(training)
    moving = now.keys() - dict(training.model.named_buffers()).keys()
    for tensors in (best["tensors"], saved) if best["tensors"] else (saved,):  # both are looked at
        require_like(now, tensors)
        if not all(torch.isfinite(tensors[name]).all() for name in moving):
            raise ValueError("not finite")
        for name, tensor in now.items():
            tensor.copy_(tensors[name])
        training.model.check_map()
    training.best.correct, training.best.epoch = int(best["correct"]), int(best["epoch"])
    training.best.tensors = dict(best["tensors"])


def load_optimizers(training: "Training", state: Mapping[str, Any]) -> None:
    """Moments, learning rates and the loss scale; schedules follow from the epoch."""
    for optimizer, saved in zip(training.optimizers, state["optimizers"], strict=True):
        load_optimizer(optimizer, saved)
    done = training.epoch
    if training.by_step:
        done = done * training.steps + training.step
    for schedule in training.schedules:
        vars(schedule).update(last_epoch=done, _step_count=done + 1)
    training.scale.load(dict(state.get("scale", {})))  # states of the first version have none
