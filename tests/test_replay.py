"""Half-steps that are recorded and replayed end in the same bits as half-steps that are run.

No GPU is needed: in place of CUDA graphs stands a recorder of the calls that torch's kernels get,
which replays them on the same memory, with Python left out as a graph leaves it out.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from conftest import MemoryLog, TinyData, TinyView, tiny_model
from searches import BOTH, find
from test_accelerators import WAYS
from test_stage import deep, finetuning, interrupted, same
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from models.classifier import PromptedClassifier
from prompts import kinds
from pruning import METHODS, replay, scores, training
from pruning.replay import Replay
from pruning.selection import _select_on_device
from pruning.stage import CLEAN
from pruning.training import run_stage
from utils.counts import pruned_count
from utils.optim import Optim, OptimConfig

# RigL looks at the number of a step between its passes, and is not recorded.
REPLAYED = [name for name, m in METHODS.items() if (m.learns or m.trains) and name != "rigl"]


class Calls(TorchDispatchMode):
    """Notes every kernel call with its arguments and results while it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class StandIn:
    """Records like a CUDA graph: constants of Python stay what they were, tensors are read anew."""

    def __init__(self) -> None:
        self.recorded = self.replays = self.forgotten = 0

    def aside(self) -> Any:
        return nullcontext()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        with pytest.MonkeyPatch.context() as patch, Calls() as made:
            patch.setattr(kinds, "being_recorded", lambda: True)
            run()
        return functools.partial(self._replay, made.calls)

    @torch.no_grad()
    def _replay(self, calls: list[tuple[Callable, tuple, dict, Any]]) -> None:
        self.replays += 1
        for func, args, kwargs, result in calls:
            news, olds = tree_flatten(func(*args, **kwargs))[0], tree_flatten(result)[0]
            for new, old in zip(news, olds, strict=True):
                if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)

    def forget(self) -> None:
        self.forgotten += 1


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Within `replaying`, training replays and selects as on a GPU."""
    monkeypatch.setattr(replay, "_refused", set())
    return StandIn()


@contextmanager
def replaying(recorder: Any) -> Iterator[None]:
    @contextmanager
    def replayed(half_step: Any, model: Any, with_grad: Any) -> Iterator[Replay]:
        replay = Replay(half_step, model, with_grad, recorder)
        yield replay
        replay.forget()

    def select(values: Tensor, density: float) -> Tensor:
        return _select_on_device(values, pruned_count(len(values), density))

    def mask(learned: Any, values: Tensor, out: Tensor) -> None:
        torch.where(learned.keep(), values, values.new_zeros(()), out=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "replayed", replayed)
        patch.setattr(scores, "select_top", select)
        patch.setattr(scores.LearnedScores, "mask", mask)
        yield


def both(recorder: StandIn, run: Callable[[], tuple[PromptedClassifier, MemoryLog]]) -> None:
    """Require the same model and the same rows from `run` as it is and with replays."""
    model, log = run()
    with replaying(recorder):
        other, replays = run()
    assert recorder.replays > 0 and same(model.state_dict(), other.state_dict())
    assert replays.rows == log.rows and deep(replays.states[-1]) == deep(log.states[-1])


def uneven() -> TinyData:
    """Views of five batches an epoch, the last one smaller."""
    return TinyData(TinyView("clean", 37), TinyView("prompted", 37), TinyView("test", 8))


def search(method: str = "vpns", **changes: Any) -> tuple[PromptedClassifier, MemoryLog]:
    found = find(method, **{"data": uneven(), "epochs": 3, "log": MemoryLog()} | changes)
    return found.model, found.log


def search_stage(model: PromptedClassifier, data: TinyData, epochs: int) -> None:
    """The search alone, on both views."""
    find("vpns", model=model, data=data, epochs=epochs, log=MemoryLog(), views=BOTH)


def finetuned(model: PromptedClassifier, log: MemoryLog, **options: Any) -> None:
    run_stage(model, finetuning(model, 3, **options), uneven(), log)


@pytest.mark.parametrize("views", [BOTH, (CLEAN,), (CLEAN, CLEAN)], ids=str)
@pytest.mark.parametrize("method", REPLAYED)
def test_a_search_replays_to_the_same_bits(stand_in: StandIn, method: str, views: tuple) -> None:
    both(stand_in, lambda: search(method, views=views, model=tiny_model()))


@pytest.mark.parametrize("kind", ["fix", "random"])
def test_every_prompt_replays_to_the_same_bits(stand_in: StandIn, kind: str) -> None:
    both(stand_in, lambda: search(views=BOTH, model=tiny_model(kind=kind)))


@pytest.mark.parametrize("way", WAYS)
def test_every_precision_replays_to_the_same_bits(stand_in: StandIn, way: str) -> None:
    def run() -> tuple[PromptedClassifier, MemoryLog]:
        model = tiny_model()
        model.use(WAYS[way])
        return search(views=BOTH, model=model)

    both(stand_in, run)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_finetuning_replays_to_the_same_bits(stand_in: StandIn, drop: float, frozen: bool) -> None:
    def run() -> tuple[PromptedClassifier, MemoryLog]:
        model, log = tiny_model(), MemoryLog()
        model.network.insert(6, nn.Dropout(drop))
        finetuned(model, log, frozen_statistics=frozen, keep_best=True)
        return model, log

    both(stand_in, run)


@pytest.mark.parametrize("scheduler", ["cosine", "multistep", "constant"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_optimizer_and_schedule_replays_to_the_same_bits(
    stand_in: StandIn, optimizer: str, scheduler: str
) -> None:
    optim = Optim(OptimConfig(optimizer, 0.05, 1e-3, scheduler))
    both(stand_in, lambda: search(views=BOTH, score_optim=optim, model=tiny_model()))


def test_labels_that_are_mapped_anew_replay_to_the_same_bits(stand_in: StandIn) -> None:
    def run() -> tuple[PromptedClassifier, MemoryLog]:
        model, epochs = tiny_model(), iter(range(10))

        def remap() -> None:
            model.label_map = model.label_map.roll(next(epochs))

        return search(views=BOTH, before_epoch=remap, model=model)

    both(stand_in, run)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 6, 9])
def test_a_replayed_stage_goes_on_to_the_same_bits(stand_in: StandIn, stop_after: int) -> None:
    whole, log = tiny_model(), MemoryLog()
    finetuned(whole, log)
    with replaying(stand_in):
        model, resumed = interrupted(tiny_model, finetuned, stop_after)
    assert same(whole.state_dict(), model.state_dict()) and resumed.rows == log.rows


# What is recorded


def test_an_epoch_records_each_half_once_and_runs_its_ends_as_they_are(stand_in: StandIn) -> None:
    with replaying(stand_in):
        search(views=BOTH, epochs=3)
    # Five steps an epoch: run, recorded, replayed twice, and a smaller one that is run.
    assert (stand_in.recorded, stand_in.replays) == (3 * 2, 3 * 2 * 2)


def test_memory_is_given_back_before_an_odd_batch_takes_its_own(stand_in: StandIn) -> None:
    model, order = tiny_model(), []
    stand_in.forget = lambda: order.append("forget")
    update = Replay(lambda *_: order.append("run"), model, (), stand_in)
    batch, odd = (torch.rand(4, 3, 8, 8), torch.zeros(4)), (torch.rand(2, 3, 8, 8), torch.zeros(2))
    for images, labels in (batch, batch, odd):
        update(0, CLEAN, images, labels)
    assert order == ["run", "run", "forget", "run"]


class Refusing(StandIn):
    """Cannot record: nothing was run."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nsecond line")


def test_a_network_that_cannot_be_recorded_is_run_as_it_is_with_one_note(
    stand_in: StandIn, capsys: pytest.CaptureFixture
) -> None:
    model, log = search(views=BOTH)
    with replaying(Refusing()):
        other, _ = search(views=BOTH)
    assert same(model.state_dict(), other.state_dict())
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: Sequential cannot be recorded as a CUDA graph (operation not")


@pytest.mark.parametrize("way", [None, "fp16"])
@pytest.mark.parametrize("kind", ["pad", "random"])
def test_a_refusal_leaves_no_trace_in_the_numbers(
    monkeypatch: pytest.MonkeyPatch, kind: str, way: str | None
) -> None:
    monkeypatch.setattr(replay, "_refused", set())

    def run() -> PromptedClassifier:
        model = tiny_model(kind=kind)
        if way:
            model.use(WAYS[way])
        search(views=BOTH, model=model)
        return model

    plain = run()
    with replaying(Refusing()):
        assert same(plain.state_dict(), run().state_dict())


def test_on_a_cpu_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "CudaGraphs", None)
    step = object()
    with replay.replayed(step, tiny_model(), ()) as update:
        assert update is step
