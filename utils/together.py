"""What the processes of a run do together: sums, one answer for all, and one end.

Every process must make the same calls in the same order. Alone, each of them does nothing.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from utils import errors
from utils.errors import Interrupted, NumericError, VPNsError
from utils.ranks import first, on_this_machine, rank, world

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)  # for a process that answers no more
PAUSE = 0.02  # seconds between looks at what another process makes
FAILED = "failed"  # where the processes tell one another why they end
_stores: list[dist.Store] = []
_calls = count()  # of what one process makes for others


class Lost(VPNsError):
    """A process ended without a word, or cannot be reached."""


def begin(device: str) -> None:
    """Meet the other processes; all but the first are silent from now on.

    `device` is --device: with GPUs, tensors on them travel by NCCL, others by gloo. Raises Lost
    when the others are not there within ten minutes.
    """
    if world() == 1:
        return
    on_gpus = device.startswith(("auto", "cuda")) and torch.cuda.is_available()
    try:
        store, _, _ = next(rendezvous("env://", rank(), world(), timeout=PATIENCE))
        # The store of torchrun outlives the processes of a try that has failed.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        with _silent():
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", store=store,
                                    rank=rank(), world_size=world(), timeout=PATIENCE)  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = errors.message_of(error)[:200]
        raise Lost(f"the {world()} processes do not meet ({reason})") from error
    _stores.append(store)
    if not first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (to the end)


@contextmanager
def _silent() -> Iterator[None]:
    """Within, what C++ prints goes nowhere: gloo of torch 2.8 talks, and our output is read."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def end() -> None:
    """Wait for all processes, and part."""
    if world() > 1:
        total(torch.zeros(1))
        dist.destroy_process_group()


def total(numbers: Tensor) -> Tensor:
    """The sums over all processes, in place."""
    if world() > 1:
        dist.all_reduce(numbers)
    return numbers


def least(number: int) -> int:
    """The smallest of a number that the processes may see in another way."""
    if world() == 1:
        return number
    held = torch.tensor(number)
    dist.all_reduce(held, dist.ReduceOp.MIN)
    return int(held)


def whole_batch(
    params: Iterable[nn.Parameter], loss: Tensor, hits: Tensor, seen: int
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Turn the gradients of this process's share of a batch into those of the whole, in place.

    `loss` is the mean over the share, `hits` the number of its images that are classified
    correctly, `seen` that of all. Returns the three for the whole batch. All travels in one
    all-reduce: each gradient once, and three numbers.
    """
    if world() == 1:
        return loss.detach(), hits, seen
    grads = [param.grad for param in params if param.grad is not None]
    numbers = torch.stack([loss.detach().double(), hits / seen, torch.ones_like(hits).double()])
    flat = torch.cat([grad.flatten() for grad in grads] + [numbers.to(grads[0].dtype)]).mul_(seen)
    dist.all_reduce(flat)
    loss, hits, images = flat[-3:].unbind()
    means = (flat / images).split([grad.numel() for grad in grads] + [3])
    for grad, mean in zip(grads, means, strict=False):
        grad.copy_(mean.view(grad.shape))
    return loss / images, hits.round().long(), images.round().long()


def as_the_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have in the first process, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def made_in_turn(parts: Sequence[Tensor]) -> None:
    """Give each part the values that it has in the process whose share it is, in place."""
    if world() > 1:
        for number, part in enumerate(parts):
            dist.broadcast(part, src=number % world())


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, for all; what it raises ends them all."""
    if world() == 1:
        return make()
    answer = [_made_by(0, make)]
    dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    return answer[0]


def one_first(make: Callable[[], T]) -> T:
    """`make()` in one process of each machine, then in the others, which find what it fetched."""
    number, _ = on_this_machine()
    made = _made_by(rank() - number, make) if world() > 1 else make()
    return make() if number else made


def _made_by(maker: int, make: Callable[[], T]) -> T | None:
    """What `make` returns in the process `maker`, for which the others wait, however long."""
    key = f"made {next(_calls)} by {maker}"
    if rank() == maker:
        made = make()
        _stores[0].set(key, "")
        return made
    while not _stores[0].check([key]):
        if (theirs := _told()) is not None:
            raise theirs
        time.sleep(PAUSE)
    return None


def require_same(tensors: Mapping[str, Tensor], place: str) -> None:
    """Raises NumericError that names the tensors in which the processes differ, and the place."""
    if world() == 1:
        return
    bits = {n: t.detach().cpu().reshape(-1).view(torch.uint8).numpy() for n, t in tensors.items()}
    mine = {name: hashlib.sha256(values).hexdigest() for name, values in bits.items()}
    every: list[Any] = [None] * world()
    dist.all_gather_object(every, mine)
    wrong = [name for name in mine if len({other.get(name) for other in every}) > 1]
    if wrong:
        raise NumericError(f"the processes differ in {', '.join(wrong[:3])} at {place}: no result "
                           "of theirs is kept; different GPUs or libraries can be the cause")


class Agreement:
    """Two flags that all processes see alike, one call later, so that nobody waits.

    Whether any process was asked to stop, and whether the first finds a state due.
    """

    def __init__(self) -> None:
        self._under_way: tuple[dist.Work, Tensor] | None = None
        self._said_due = False

    def __call__(self, asked: bool, due: bool) -> tuple[bool, bool]:
        """This process's flags in, the flags of all at the call before out."""
        if world() == 1:
            return asked, due
        self._said_due = due and first() and not self._said_due  # once for each state
        flags = torch.tensor([asked, self._said_due], dtype=torch.uint8)
        before = self._under_way
        self._under_way = dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True), flags
        if before is None:
            return False, False
        work, flags = before
        work.wait()
        return bool(flags[0]), bool(flags[1])


@contextmanager
def one_end(
    meant: Callable[[BaseException], BaseException], line: Callable[[BaseException], str]
) -> Iterator[None]:
    """Within, an error of one process ends all with its code and message.

    `meant` tells a stop from what a library made of it; `line` is the message of an error. A
    process that is gone without a word raises Lost in the others.
    """
    try:
        yield
    except BaseException as raised:
        if not _stores:
            raise
        error = meant(raised)
        if (theirs := _told()) is not None:
            raise theirs from raised
        if isinstance(error, RuntimeError) and _of_a_connection(error):
            error = Lost("a process of this run is gone, perhaps killed for memory: the same "
                         "command continues from the last state")
        told = {"kind": type(error).__name__, "line": line(error), "rank": rank()}
        with suppress(RuntimeError):  # the store went with its process
            _stores[0].set(FAILED, json.dumps(told))
        raise error from raised


def _told() -> BaseException | None:
    """The error that another process ended with, if one has."""
    with suppress(RuntimeError):
        if _stores[0].check([FAILED]):
            told = json.loads(_stores[0].get(FAILED))
            kind = getattr(errors, told["kind"], VPNsError)
            if told["rank"] != rank():
                return kind(told["line"] if kind is Interrupted else
                            f"process {told['rank']}: {told['line']}")  # fmt: skip
    return None


def _of_a_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text
