"""Autocast, channels-last, compilation, TF32, and an accelerator that nobody waits for.

No GPU is needed: what an accelerator would have to wait for is an error on the meta device, and
the CPU has autocast, loss scaling and a compiler too.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import SMALL, at_call, call, finish, forked, hashes, run, send, start
from conftest import CLASSES, MemoryLog, TinyData, TinyView, tiny_model
from searches import BOTH, OPTIM, find, make_search
from test_stage import finetuning, interrupted, same
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.classifier import PromptedClassifier
from models.label_map import count_predictions
from pruning.masks import MaskKeeper, Masks, all_kept
from pruning.measure import evaluate
from pruning.scores import learn_masks
from pruning.stage import Group, Stage
from pruning.training import run_stage
from runfolder.stage_log import StageLog
from utils import device
from utils.errors import Interrupted, NumericError
from utils.loss_scale import MOST_SKIPPED, LossScale
from utils.optim import Optim, OptimConfig
from utils.precision import DTYPES, Precision

WAYS = {
    "bf16": Precision(amp="bf16"),
    "fp16": Precision(amp="fp16"),
    "channels_last": Precision(channels_last=True),
}


def using(way: str) -> PromptedClassifier:
    model = tiny_model()
    model.use(WAYS[way])
    return model


def searched(model: PromptedClassifier, log: MemoryLog | None = None) -> Masks:
    """A search of two epochs on both views."""
    return learn_masks(make_search(model, views=BOTH, epochs=2, log=log or MemoryLog()))


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in a nested value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(inner)


# What is computed how


@pytest.mark.parametrize("name", DTYPES)
def test_autocast_is_for_the_layers_and_nothing_else(name: str) -> None:
    model, seen = using(name), []
    model.network[0].register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    logits = model(torch.rand(2, 3, 8, 8), prompted=True)
    (given, out), = seen
    assert given.dtype == logits.dtype == torch.float32 and out.dtype == DTYPES[name]


@pytest.mark.parametrize(
    "use",
    [
        lambda model: run_stage(model, finetuning(model, 1), TinyData(), MemoryLog()),
        lambda model: evaluate(model, TinyView("test")),
        lambda model: count_predictions(model, TinyView("clean").batches(), CLASSES, False),
    ],
    ids=["training", "evaluation", "label mapping"],
)
def test_autocast_reaches_every_use_of_the_model(use: Any) -> None:
    model, seen = using("bf16"), set()
    model.network[0].register_forward_hook(lambda _, given, out: seen.add(out.dtype))
    use(model)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_kept_of_a_search_is_float32_and_contiguous(way: str) -> None:
    model, log = using(way), MemoryLog()
    searched(model, log)
    kept = [*tensors_of(log.states[-1]), *model.state_dict().values()]
    assert {t.dtype for t in kept if t.is_floating_point()} == {torch.float32}
    assert all(tensor.is_contiguous() for tensor in kept)


@pytest.mark.parametrize("way", WAYS)
def test_a_search_goes_nearly_as_in_float32(way: str) -> None:
    plain, model = tiny_model(), using(way)
    masks, expected = searched(model), searched(plain)
    differ = sum(int((masks[name] != mask).sum()) for name, mask in expected.items())
    assert differ <= 0.05 * sum(mask.numel() for mask in expected.values())
    assert (model.prompt.program - plain.prompt.program).abs().max() < 0.02


def test_channels_last_gives_the_layers_channels_last_images() -> None:
    model, seen = using("channels_last"), []
    model.network[3].register_forward_hook(lambda _, given, out: seen.extend((given[0], out)))
    model(torch.rand(2, 3, 8, 8))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_scores_of_one_batch_are_taken_in_float32(method: str) -> None:
    found, expected = find(method, model=using("fp16")), find(method)
    assert same(found.masks, expected.masks) and found.model.precision == WAYS["fp16"]


@pytest.mark.parametrize("stop_after", [1, 3, 4])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["search", "finetune"])
def test_going_on_is_bit_identical(stage: str, way: str, stop_after: int) -> None:
    def go(model: PromptedClassifier, log: MemoryLog) -> None:
        if stage == "search":
            searched(model, log)
        else:
            run_stage(model, finetuning(model, 2), TinyData(), log)

    whole, log = using(way), MemoryLog()
    go(whole, log)
    model, resumed = interrupted(functools.partial(using, way), go, stop_after)
    assert same(whole.state_dict(), model.state_dict()) and resumed.rows == log.rows
    assert resumed.states[-1]["scale"] == log.states[-1]["scale"]


# Loss scaling

HUGE = 1e36  # finite, and infinite once scaled


def stepped(enabled: bool, kind: str, factors: list[float]) -> Tensor:
    """A parameter after a step for each factor of its loss."""
    memory = [torch.full((4,), torch.nan) for _ in range(64)]  # found by who trusts fresh memory
    del memory
    param = nn.Parameter(torch.tensor([0.3, -1.7, 2.5, 1e-3]))
    optimizer, _ = Optim(OptimConfig(kind, lr=0.1, weight_decay=0.0)).build([param], 1)
    scale = LossScale([param], enabled)
    for factor in factors:
        param.grad = None
        scale.backward([((param**2).sum() * factor, torch.tensor(0), 1)], 1)
        scale.step([optimizer])
    return param.detach()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_scaling_leaves_no_trace_in_a_step(kind: str) -> None:
    factors = [0.7, 1e-6, 3.0]
    assert torch.equal(stepped(True, kind, factors), stepped(False, kind, factors))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_step_whose_gradient_overflows_is_as_if_it_had_not_been(kind: str) -> None:
    found = stepped(True, kind, [HUGE, 0.7, HUGE, 0.2])
    assert torch.equal(found, stepped(False, kind, [0.7, 0.2]))


def test_hooks_see_gradients_that_are_not_scaled() -> None:
    held, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    scale = LossScale([held, frozen], True)
    scale.backward([((3 * held + 5 * frozen).sum(), torch.tensor(0), 1)], 1)
    assert held.grad.tolist() == [3.0] * 3 and frozen.grad.tolist() == [5.0] * 3


def overflowing() -> PromptedClassifier:
    """A model whose logits are small and whose gradients overflow in float16 at any usual scale."""
    model = using("fp16")
    with torch.no_grad():
        for tensor in (model.network[3].weight, model.network[3].bias):
            tensor.mul_(1e-4)
        model.network[7].weight.mul_(1e5)
    return model


def overflow_stage(model: PromptedClassifier) -> Stage:
    return Stage("s", MOST_SKIPPED, (Group(tuple(model.network.parameters()), OPTIM),))


def test_many_skipped_steps_in_a_row_end_the_run() -> None:
    model, log = overflowing(), MemoryLog()
    before = model.network[7].weight.detach().clone()
    with pytest.raises(NumericError, match="use --amp bf16") as caught:
        run_stage(model, overflow_stage(model), TinyData(), log)
    assert caught.value.exit_code == 3 and len(log.rows) == 1
    assert torch.equal(model.network[7].weight, before)


def test_steps_are_counted_on_over_a_stop() -> None:
    def go(model: PromptedClassifier, log: MemoryLog) -> None:
        run_stage(model, overflow_stage(model), TinyData(), log)

    logs = [MemoryLog(), MemoryLog(stop_after=4)]
    with pytest.raises(NumericError):
        go(overflowing(), logs[0])
    with pytest.raises(Interrupted):
        go(overflowing(), logs[1])
    assert logs[1].states[-1]["scale"]["in_a_row"] == 8
    resumed = MemoryLog(state=logs[1].states[-1])
    with pytest.raises(NumericError):
        go(overflowing(), resumed)
    assert logs[1].rows + resumed.rows == logs[0].rows


# Nothing in the loop waits for an accelerator


class NoWaiting(TorchDispatchMode):
    """Fails where a number would have to come from a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_scaled_step_waits_for_nothing() -> None:
    with NoWaiting():
        stepped(True, "adam", [HUGE, 0.7])


class MetaView(TinyView):
    """Batches on the meta device, whose tensors have no values: reading one is an error."""

    def whole(self):
        return self

    def batches(self, *key: object, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in super().batches(*key, start=start):
            yield images.to("meta"), labels.to("meta")


class Arrived(Exception):
    """All steps of an epoch have been made."""


class OneEpoch(MemoryLog):
    """Leaves after the last step of an epoch, before its numbers are read."""

    def steps(self, steps: range, title: str) -> Iterator[int]:
        yield from steps
        raise Arrived


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model, data and a log on an accelerator that nobody may wait for.

    The initial scores are looked at, once a level.
    """
    monkeypatch.setattr("pruning.scores.require_finite", lambda values: None)
    views = {name: MetaView(name) for name in ("clean", "prompted", "test")}
    return {"model": tiny_model().to("meta"), "data": TinyData(**views), "log": OneEpoch()}


def test_the_meta_device_notices_who_waits(on_meta: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        evaluate(on_meta["model"], on_meta["data"].test)


@pytest.mark.parametrize("method", ["vpns", "bip"])
def test_a_search_step_waits_for_nothing(on_meta: dict[str, Any], method: str) -> None:
    with pytest.raises(Arrived):
        find(method, views=BOTH, **on_meta)


def test_a_fine_tuning_step_waits_for_nothing(on_meta: dict[str, Any]) -> None:
    model, network = on_meta["model"], on_meta["model"].network
    groups = [Group(tuple(part.parameters()), OPTIM) for part in (network, model.prompt)]
    keeper = MaskKeeper(network, all_kept(network))
    stage = Stage("finetune", 1, tuple(groups), BOTH, renew=keeper)
    with pytest.raises(Arrived):
        run_stage(model, stage, on_meta["data"], on_meta["log"])


@pytest.mark.parametrize("prompted", [False, True])
def test_label_mapping_waits_at_its_end_only(on_meta: dict[str, Any], prompted: bool) -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from on_meta["data"].clean.batches()
        raise Arrived

    with pytest.raises(Arrived):
        count_predictions(on_meta["model"], batches(), CLASSES, prompted)


# Compilation


@pytest.fixture
def quick_compiler() -> Iterator[Any]:
    """torch.compile without code generation, which takes a minute. Gives a count of graphs."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


class Network(torch.nn.Sequential):
    """torch 2.8 compiles no forward of its own containers."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


def compiled() -> PromptedClassifier:
    model = tiny_model()
    model.network.__class__ = Network
    model.use(Precision(compile=True))
    return model


def test_compiled_code_sees_the_masked_weights_of_every_step(quick_compiler: Any) -> None:
    plain, model = tiny_model(), compiled()
    plain_log, log = MemoryLog(), MemoryLog()
    assert same(searched(model, log), searched(plain, plain_log))
    assert quick_compiler() > 0 and list(model.state_dict()) == list(plain.state_dict())
    for row, expected in zip(log.rows, plain_log.rows, strict=True):
        assert row["clean_loss"] == pytest.approx(expected["clean_loss"], rel=1e-5)


def test_further_levels_and_smaller_batches_compile_nothing(quick_compiler: Any) -> None:
    searched(compiled())
    first = quick_compiler()
    data = TinyData(clean=TinyView("clean", 21), prompted=TinyView("prompted", 21))
    learn_masks(make_search(compiled(), views=BOTH, density=0.1, data=data))
    assert first <= 3 and quick_compiler() == first


def test_scores_with_second_derivatives_run_uncompiled(quick_compiler: Any) -> None:
    found, expected = find("grasp", model=compiled()), find("grasp")
    assert same(found.masks, expected.masks)


# The program

QUICK = (
    "--density_list", "0.1", "--train_images", 24, "--batch_size", 12,
    "--input_size", 4, "--output_size", 4, "--eval_every", 0,
)  # fmt: skip


def test_run_goes_on_bit_identically_and_is_measured_in_its_own_precision(tmp_path: Path) -> None:
    words = [*QUICK, "--prune_method", "hydra", "--amp", "bf16", "--channels_last"]
    whole = run(tmp_path / "whole", *words)
    hook = (StageLog, "save", 1, send("SIGKILL"), True)
    killed = forked(tmp_path / "killed", *words, before=lambda: at_call(*hook))
    assert killed.code == -9
    again = run(tmp_path / "killed", *words)
    assert hashes(again.folder) == hashes(whole.folder) and again.folder.name == whole.folder.name
    model = whole.folder / "d0.1/model.safetensors"
    measured = call("--evaluate", model, "--device", "cpu").result
    assert measured["clean"] == whole.result["rows"][0]["clean"]


@pytest.mark.slow
@pytest.mark.last
def test_model_of_a_compiled_run_is_measured_without_a_compiler(
    tmp_path: Path, quick_compiler: Any
) -> None:
    done = run(tmp_path, *QUICK, "--prune_method", "random", "--compile")
    graphs, row = quick_compiler(), done.result["rows"][0]
    measured = call("--evaluate", done.folder / "d0.1/model.safetensors", "--device", "cpu").result
    assert graphs > 0 and quick_compiler() == graphs
    assert measured["clean"] == pytest.approx(row["clean"], abs=0.6)


@pytest.fixture
def tf32_restored() -> Iterator[None]:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def test_tf32_is_as_asked_whatever_ran_before(tmp_path: Path, tf32_restored: None) -> None:
    words = [*QUICK, "--prune_method", "random", "--epochs", 0]
    for flags, expected in ((["--tf32"], True), ([], False), (["--tf32"], True)):
        assert run(tmp_path, *words, *flags, "--resume", "none").code == 0
        assert torch.backends.cuda.matmul.allow_tf32 is expected
        assert torch.backends.cudnn.allow_tf32 is True  # torch's default, and the authors'
    assert run(tmp_path, *words, "--full_float32").code == 0
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_tf32_and_full_float32_contradict_each_other(tmp_path: Path) -> None:
    done = run(tmp_path, *QUICK, "--tf32", "--full_float32")
    assert done.code == 2 and "contradict" in done.error and not list(tmp_path.iterdir())


@pytest.fixture
def switches() -> Iterator[None]:
    """Deterministic kernels are a switch of the process."""
    before = torch.are_deterministic_algorithms_enabled()
    workspace = os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    yield
    torch.use_deterministic_algorithms(before)
    torch.backends.cudnn.deterministic = False
    torch.utils.deterministic.fill_uninitialized_memory = True
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if workspace is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


@pytest.mark.parametrize(
    ("name", "asked", "expected"), [("cuda", "on", True), ("cuda", "off", False), ("cpu", "on", 0)]
)
def test_a_gpu_computes_by_deterministic_kernels_unless_told(
    switches: None, name: str, asked: str, expected: bool
) -> None:
    Precision(deterministic=asked).begin(torch.device(name))
    assert torch.are_deterministic_algorithms_enabled() == expected
    assert torch.backends.cudnn.deterministic == expected
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if expected else None)


def test_a_workspace_that_the_user_has_chosen_stays(
    switches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    Precision().begin(torch.device("cuda"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_device_without_the_precision_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "DEVICES", (*device.DEVICES, "meta"))
    done = run(tmp_path, *QUICK, "--amp", "fp16", "--device", "meta")
    assert done.code == 2 and done.error.startswith("--amp fp16 does not work on meta")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_missing_compiler_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = finish(start(*SMALL, "--save_dir", tmp_path / "run", *QUICK, "--compile"))
    last = done.err.splitlines()[-1]  # torch may log lines of its own
    assert done.code == 1 and "Traceback" not in done.err
    assert last.startswith("error: --compile fails here; it needs a C++ compiler")
    assert not list(tmp_path.glob("run/*/*/*/*.safetensors"))


@pytest.mark.slow
@pytest.mark.last
def test_compiled_run_is_close_and_goes_on_bit_identically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*QUICK, "--epochs", 2, "--compile"]
    whole = run(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:  # a fork could not use the compiler's helper processes
        patch.setattr(StageLog, "save", StageLog.save)
        at_call(StageLog, "save", 3, send("SIGTERM"), True)
        assert run(tmp_path / "stopped", *words).code == 75
    torch.compiler.reset()  # as another process would begin
    again = run(tmp_path / "stopped", *words)
    assert hashes(again.folder) == hashes(whole.folder)
    plain, row = run(tmp_path / "plain", *words[:-1]), whole.result["rows"][0]
    assert row["clean"] == pytest.approx(plain.result["rows"][0]["clean"], abs=1.0)
