"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from utils.config import flag, number
from utils.tensors import require_like

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "multistep", "constant")


def parse_shares(text: str) -> tuple[float, ...]:
    """`0.5,0.72` to floats in [0, 1]."""
    return tuple(number(float, 0, 1)(part) for part in text.strip("[]() ").split(","))


@dataclass(frozen=True)
class OptimConfig:
    """How one group of parameters moves. Adam's weight decay is coupled (L2), as the paper ran;
    AdamW's is not (Loshchilov and Hutter 2019)."""

    optimizer: str = flag("sgd", "optimizer", choices=OPTIMIZERS)
    lr: float = flag(0.01, "learning rate", parse=number(float, 0))
    weight_decay: float = flag(1e-4, "weight decay", parse=number(float, 0))
    scheduler: str = flag(
        "cosine", "learning-rate schedule (see --schedule_by)", choices=SCHEDULES)


@dataclass(frozen=True)
class ScheduleConfig:
    """What the four groups share."""

    momentum: float = flag(0.9, "momentum of SGD", parse=number(float, 0, 1))
    decreasing_step: tuple[float, ...] = flag(
        (0.5, 0.72), "where multistep divides the rate by 10, as shares of the epochs",
        parse=parse_shares)
    warmup_epochs: int = flag(
        0, "epochs in which all learning rates rise evenly to what they are", parse=number(int, 0))
    schedule_by: str = flag(
        "epoch", "when learning rates change; by step nothing is recorded on a GPU",
        choices=("epoch", "step"))


@dataclass(frozen=True)
class Optim:
    """A group's optimizer settings with the shared ones: all that `build` needs."""

    own: OptimConfig
    shared: ScheduleConfig = ScheduleConfig()

    @property
    def by_step(self) -> bool:
        """Whether the schedule is stepped after each step, and not after each epoch."""
        return self.shared.schedule_by == "step"

    def build(
        self, params: Iterable[nn.Parameter], epochs: int, steps: int = 1
    ) -> tuple[torch.optim.Optimizer, lr_scheduler.LRScheduler]:
        """An optimizer over `params`, fused where the device has it, and its schedule.

        `steps` is how many an epoch has.
        """
        params = tuple(params)
        kind, momentum = params[0].device.type, self.shared.momentum
        options = {"lr": self.own.lr, "weight_decay": self.own.weight_decay}
        options["fused"] = kind in ("cpu", "cuda")
        if self.own.optimizer != "sgd":
            adam = torch.optim.Adam if self.own.optimizer == "adam" else torch.optim.AdamW
            optimizer = adam(params, capturable=kind == "cuda", **options)
            optimizer._warned_capturable_if_run_uncaptured = True  # an epoch's first step is, too
        else:
            optimizer = torch.optim.SGD(params, momentum=momentum, **options)
            # Zeros at once. torch's fused kernel writes them in the first step: if that one is
            # skipped, it goes on with what is in the memory, and a recording never goes on.
            for param in params if momentum else ():
                optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
        if self.by_step or self.shared.warmup_epochs:
            count = steps if self.by_step else 1
            share = partial(self._share, epochs=epochs, tick=1 / count)
            return optimizer, lr_scheduler.LambdaLR(optimizer, lambda ticks: share(ticks / count))
        if self.own.scheduler == "cosine":
            return optimizer, lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(epochs, 1))
        return optimizer, lr_scheduler.MultiStepLR(optimizer, self._milestones(epochs), gamma=0.1)

    def _milestones(self, epochs: int) -> list[int]:
        """The epochs after which the rate is divided by 10."""
        shares = self.shared.decreasing_step if self.own.scheduler == "multistep" else ()
        # One below 1 would count as passed before the first epoch.
        return [int(share * epochs) for share in shares if int(share * epochs) >= 1]

    def _share(self, done: float, epochs: int, tick: float) -> float:
        """The share of the learning rate after `done` epochs of `epochs`, the next `tick` begins.

        It rises to 1 in the warm-up; a cosine begins there, milestones count from the start.
        """
        warmup = self.shared.warmup_epochs
        if done < warmup:
            return min(1.0, (done + tick) / warmup)
        if self.own.scheduler == "cosine":
            return (1 + math.cos(math.pi * (done - warmup) / max(epochs - warmup, 1))) / 2
        return 0.1 ** sum(done >= milestone for milestone in self._milestones(epochs))


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Take moments and learning rates from a state dict; all other settings stay as they are.

    Raises ValueError, TypeError or LookupError when they are of other parameters; for within
    `understood`.
    """
    groups = zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    own = [group | {"lr": float(kept["lr"])} for group, kept in groups]
    optimizer.load_state_dict({"state": dict(saved["state"]), "param_groups": own})
    optimizer._opt_called = True  # before the stop; else torch warns at an epoch's end
    for param, moments in optimizer.state.items():
        given = {name: param for name, value in moments.items() if value is not None}
        if isinstance(optimizer, torch.optim.Adam):
            given |= dict.fromkeys(("exp_avg", "exp_avg_sq"), param)
            given["step"] = torch.zeros((), device=moments["step"].device)
        require_like(given, moments)
