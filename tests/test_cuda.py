"""On an NVIDIA GPU: the same masks as on the CPU, the same bits each time, recorded or not.

Skipped where there is none. What a GPU trains here is tiny; two whole runs stand at the end.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cli import SMALL, finish, start, wait_for
from conftest import MemoryLog, TinyData, TinyView, tiny_model
from searches import BOTH, find
from test_golden import LAYERS, Golden, Trajectory, flat
from test_replay import search_stage
from test_stage import deep, finetuning, interrupted, same
from torch import Tensor, nn

from data import DataConfig, load_data
from models.classifier import PromptedClassifier
from pruning import METHODS
from pruning.selection import lift_best, select_top
from pruning.stage import CLEAN
from pruning.training import run_stage
from utils.files import sha256_file
from utils.precision import Precision

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.last,  # a fork cannot use a GPU that its parent uses
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
WAYS = {
    "float32": Precision(),
    "full float32": Precision(full_float32=True),
    "bf16": Precision(amp="bf16"),
    "fp16": Precision(amp="fp16"),
    "channels_last": Precision(channels_last=True),
}


class GpuView(TinyView):
    """A view whose batches lie on the GPU."""

    def whole(self):
        return self

    def batches(self, *key: object, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.to(GPU), y.to(GPU)) for x, y in super().batches(*key, start=start))


def uneven() -> TinyData:
    """Views of five batches an epoch, the last one smaller."""
    return TinyData(GpuView("clean", 37), GpuView("prompted", 37), GpuView("test", 8))


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """The process-wide switches are put back."""
    yield
    Precision().begin(CPU)


def model_on_gpu(way: Precision = WAYS["float32"], kind: str = "pad") -> PromptedClassifier:
    way.begin(GPU)
    model = tiny_model(kind=kind).to(GPU)
    model.use(way)
    return model


End = tuple[dict[str, Tensor], list[dict[str, Any]]]  # a model's state and the rows of its log


def searched(way: Precision, method: str = "vpns", kind: str = "pad", **changes: Any) -> End:
    values = {"data": uneven(), "epochs": 3, "log": MemoryLog(), "views": BOTH} | changes
    found = find(method, model=model_on_gpu(way, kind), **values)
    return found.model.state_dict() | {f"mask {n}": m for n, m in found.masks.items()}, (
        found.log.rows
    )


def tuned(way: Precision, **options: Any) -> End:
    model, log = model_on_gpu(way), MemoryLog()
    model.network.insert(6, nn.Dropout(0.5))
    run_stage(model, finetuning(model, 3, **options), uneven(), log)
    return model.state_dict(), log.rows


def require_equal(run: Callable[[Precision], End], way: Precision = WAYS["float32"]) -> None:
    """Two runs, and a run without recordings, end in the same bits and the same rows."""
    first, again, eager = run(way), run(way), run(replace(way, cuda_graphs="off"))
    assert same(first[0], again[0]) and first[1] == again[1], "two equal runs differ"
    assert same(first[0], eager[0]) and first[1] == eager[1], "a recorded run differs"


@pytest.mark.parametrize("kinds", [2, 1000, 2**23])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.6])
def test_a_gpu_selects_as_the_cpu_does(density: float, kinds: int) -> None:
    rng = torch.Generator().manual_seed(kinds)
    values = torch.randint(kinds, (3_000_000,), generator=rng).float()
    assert torch.equal(select_top(values.to(GPU), density).cpu(), select_top(values, density))


def test_a_selection_waits_for_nothing() -> None:
    values = torch.rand(3_000_000, device=GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        select_top(lift_best(values, [1_000_000, 2_000_000], 0.05), 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_in_the_same_bits(method: str) -> None:
    require_equal(lambda way: searched(way, method))


def test_a_floor_under_the_layers_ends_in_the_same_bits() -> None:
    require_equal(lambda way: searched(way, floor=0.1))


@pytest.mark.parametrize("kind", ["fix", "random"])
def test_every_prompt_ends_in_the_same_bits(kind: str) -> None:
    require_equal(lambda way: searched(way, kind=kind))


@pytest.mark.parametrize("way", WAYS)
def test_every_precision_ends_in_the_same_bits(way: str) -> None:
    require_equal(searched, WAYS[way])


@pytest.mark.parametrize("frozen", [False, True])
def test_finetuning_with_dropout_ends_in_the_same_bits(frozen: bool) -> None:
    require_equal(lambda way: tuned(way, frozen_statistics=frozen, keep_best=True))


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 6, 9])
def test_a_stage_that_was_stopped_ends_in_the_same_bits(stop_after: int) -> None:
    def run(model: PromptedClassifier, log: MemoryLog) -> None:
        run_stage(model, finetuning(model, 3), uneven(), log)

    whole, log = model_on_gpu(), MemoryLog()
    run(whole, log)
    model, resumed = interrupted(model_on_gpu, run, stop_after)
    assert same(whole.state_dict(), model.state_dict()) and resumed.rows == log.rows
    assert deep(resumed.states[-1]) == deep(log.states[-1])


def test_steps_are_replayed_from_the_third_on(monkeypatch: pytest.MonkeyPatch) -> None:
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph)
    )
    search_stage(model_on_gpu(), uneven(), epochs=2)
    assert len(replays) == 2 * 3 * 2  # epochs, full batches after the first, halves


class Waiting(nn.Module):
    """Looks at a number in its forward pass, which no recording can."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > -1e9 else -x


def test_a_network_that_waits_for_the_host_is_trained_all_the_same(
    capsys: pytest.CaptureFixture,
) -> None:
    class Asking(nn.Sequential):
        pass

    model, expected = model_on_gpu(), model_on_gpu()
    model.network = Asking(Waiting(), nn.Dropout(0.0), *model.network)
    search_stage(model, uneven(), epochs=2)
    search_stage(expected, uneven(), epochs=2)
    assert same(model.network[2].state_dict(), expected.network[0].state_dict())
    assert capsys.readouterr().out.count("note: Asking cannot be recorded") == 1


def test_batches_are_those_of_the_cpu() -> None:
    views = [
        load_data(DataConfig("digits", batch_size=128), 16, 128, device) for device in (GPU, CPU)
    ]
    for name in (CLEAN, "prompted", "test"):
        pairs = zip(*(getattr(data, name).batches(7) for data in views), strict=True)
        for (x, y), (other, labels) in pairs:
            assert torch.equal(x.cpu(), other) and torch.equal(y.cpu(), labels)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="module")
def trajectory(golden: Golden) -> Trajectory:
    """The authors' trajectory on the GPU in full float32, its losses noted on the way."""
    losses, cross_entropy = [], F.cross_entropy

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value = cross_entropy(logits, labels)
        losses.append(value.item())
        return value

    Precision(full_float32=True).begin(GPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", loss)
        patch.setattr("pruning.training.replayed", _as_it_is)  # losses are looked at
        return Trajectory(golden, losses, "cuda")


def _as_it_is(half_step: Any, *_: Any) -> Any:
    from contextlib import nullcontext

    return nullcontext(half_step)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.cpu(), theirs.to(ours.dtype), rtol=0, atol=1e-5)


def test_losses_of_the_authors_are_met(trajectory: Trajectory, golden: Golden) -> None:
    close(torch.tensor(trajectory.search_losses), golden["prune/loss"])
    close(torch.tensor(trajectory.finetune_losses), golden["finetune/loss"])


def test_scores_prompt_and_logits_of_the_authors_are_met(
    trajectory: Trajectory, golden: Golden
) -> None:
    close(trajectory.scores, flat(golden, "prune/scores"))
    close(trajectory.search_prompt, golden["prune/prompt"])
    close(trajectory.search_logits, golden["prune/eval_logits"])
    close(trajectory.finetune_logits, golden["finetune/eval_logits"])


def test_masks_of_the_authors_are_met_but_for_scores_at_the_threshold(
    trajectory: Trajectory, golden: Golden
) -> None:
    ours = torch.cat([trajectory.masks[f"{name}.weight"].flatten().cpu() for name in LAYERS])
    far = (flat(golden, "prune/scores").abs() - golden["prune/threshold"][-1]).abs() > 1e-5
    assert torch.equal(ours[far], flat(golden, "mask_after")[far])


# Whole runs, each a process of its own

RUN = [*SMALL, "--device", "cuda", "--density_list", "0.1", "--epochs", 2, "--save_minutes", 0]


def hashes(folder: Path) -> dict[str, str]:
    """The models of a run by their level."""
    models = sorted(folder.rglob("d*/model.safetensors"))
    assert models
    return {path.parent.name: sha256_file(path) for path in models}


def test_a_run_that_was_stopped_ends_in_the_same_bytes_and_is_measured_alike(
    tmp_path: Path,
) -> None:
    runs = []
    for name in ("one", "two"):
        process = start(*RUN, "--save_dir", tmp_path / name)
        if name == "two":
            wait_for(lambda: list((tmp_path / "two").rglob("metrics.jsonl")), process)
            process.send_signal(signal.SIGTERM)
            assert finish(process).code == 75
            process = start(*RUN, "--save_dir", tmp_path / name)
        done = finish(process)
        assert done.code == 0, done.err
        runs.append(hashes(tmp_path / name))
    assert runs[0] == runs[1]
    (model,) = (tmp_path / "one").rglob("d0.1/model.safetensors")
    results = [
        finish(start("--evaluate", model, "--device", device, "--full_float32")).result
        for device in ("cuda", "cpu")
    ]
    assert results[0] == results[1]
