"""How a batch becomes an update, and how learning rates change."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import at_call, forked, hashes, run, send
from conftest import MemoryLog, TinyData, TinyView, tiny_model, tiny_network
from torch import Tensor, nn

from models.classifier import PromptedClassifier
from pruning.measure import evaluate
from pruning.method import Search
from pruning.scores import learn_masks
from pruning.stage import CLEAN, PROMPTED, Group, Stage
from pruning.training import run_stage
from runfolder.stage_log import StageLog
from utils.errors import Interrupted
from utils.optim import Optim, OptimConfig, ScheduleConfig
from utils.recipe import Recipe

QUICK = ["--density_list", "0.1", "--eval_every", 0, "--input_size", 8, "--output_size", 8]


def without_norms() -> PromptedClassifier:
    """The tiny classifier without BatchNorm, for which a batch is the sum of its parts."""
    model = tiny_model()
    model.network = nn.Sequential(*[m for m in tiny_network() if not isinstance(m, nn.BatchNorm2d)])
    return model


def fine_tuned(recipe: Recipe, shared: ScheduleConfig, **log: Any) -> Any:
    """A model trained for two epochs of three steps by a recipe, and the log."""
    model, kept = without_norms(), MemoryLog(**log)
    model.recipe = recipe
    group = Group(tuple(model.network.parameters()), Optim(OptimConfig("adamw", 0.01), shared))
    run_stage(model, Stage("finetune", 2, (group,), (CLEAN,)), TinyData(), kept)
    return model, kept


def searched(recipe: Recipe) -> tuple[PromptedClassifier, MemoryLog]:
    """A model after a search of two epochs, prompted and clean."""
    model, log = without_norms(), MemoryLog()
    model.recipe, adam = recipe, Optim(OptimConfig("adam", 0.01))
    learn_masks(Search(model, TinyData(), 0.3, 2, (PROMPTED, CLEAN), adam, adam, adam, log))
    return model, log


def losses(log: MemoryLog) -> list[float]:
    return [value for row in log.rows for name, value in row.items() if name.endswith("_loss")]


@pytest.mark.parametrize("parts", [2, 3, 8, 50])
def test_a_search_in_parts_is_one_of_whole_batches(parts: int) -> None:
    (whole, before), (parted, after) = searched(Recipe()), searched(Recipe(accumulate=parts))
    assert losses(after) == pytest.approx(losses(before), rel=1e-5)
    for one, other in zip(whole.state_dict().values(), parted.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_batch_is_never_wholly_in_memory_when_it_is_computed_in_parts() -> None:
    seen: list[int] = []

    class Sees(PromptedClassifier):
        def forward(self, x: Tensor, prompted: bool = False) -> Tensor:
            if self.training:
                seen.append(len(x))
            return super().forward(x, prompted)

    model = without_norms()
    model.__class__, model.recipe = Sees, Recipe(accumulate=3)
    group = Group(tuple(model.network.parameters()), Optim(OptimConfig()))
    data = TinyData(clean=TinyView("clean", 18))
    run_stage(model, Stage("finetune", 1, (group,), (CLEAN,)), data, MemoryLog())
    assert seen == [3, 3, 2, 3, 3, 2, 1, 1]  # batches of 8, 8 and 2 images


def test_label_smoothing_is_szegedys() -> None:
    logits, labels, share = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2]), 0.1
    logs = logits.log_softmax(1)
    own = logs.gather(1, labels[:, None])[:, 0]
    expected = -((1 - share) * own + share * logs.mean(1)).mean()
    assert torch.allclose(Recipe(label_smoothing=share).loss(logits, labels), expected)


def test_gradients_of_a_group_are_no_longer_than_asked() -> None:
    params = [nn.Parameter(torch.zeros(size)) for size in (3, 2, 1)]
    params[0].grad, params[1].grad = torch.tensor([3.0, 0, 0]), torch.tensor([0.0, 4])
    Recipe(clip_grad=1.0).clip(params)  # one has no gradient
    assert torch.allclose(torch.cat([params[0].grad, params[1].grad]),
                          torch.tensor([0.6, 0, 0, 0, 0.8]))  # fmt: skip
    Recipe(clip_grad=9.0).clip(params)
    assert torch.allclose(params[1].grad, torch.tensor([0, 0.8]))


def rates(scheduler: str, shared: ScheduleConfig, epochs: int, steps: int) -> list[float]:
    """The learning rate of each step."""
    optimizer, schedule = Optim(OptimConfig("sgd", 1.0, 0, scheduler), shared).build(
        [nn.Parameter(torch.zeros(1))], epochs, steps
    )
    found = []
    for _ in range(epochs):
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            if shared.schedule_by == "step":
                optimizer.step()
                schedule.step()
        if shared.schedule_by == "epoch":
            optimizer.step()
            schedule.step()
    return found


def test_the_rate_rises_in_the_warm_up_and_falls_by_a_cosine() -> None:
    found = rates("cosine", ScheduleConfig(warmup_epochs=2), epochs=6, steps=1)
    cosine = [(1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    assert found == pytest.approx([0.5, 1.0, *cosine])


def test_a_schedule_by_step_moves_at_every_step() -> None:
    found = rates("cosine", ScheduleConfig(schedule_by="step"), epochs=2, steps=3)
    assert found == pytest.approx([(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])


def test_milestones_are_where_they_are_without_a_warm_up() -> None:
    shares = (0.5, 0.72)
    warm = rates("multistep", ScheduleConfig(0.9, shares, warmup_epochs=1), epochs=10, steps=1)
    plain = rates("multistep", ScheduleConfig(0.9, shares), epochs=10, steps=1)
    assert warm == pytest.approx(plain)


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_stage_by_steps_goes_on_bit_identically(stop_after: int) -> None:
    by_step = ScheduleConfig(warmup_epochs=1, schedule_by="step")
    recipe = Recipe(label_smoothing=0.1, clip_grad=0.5, accumulate=2)
    whole, _ = fine_tuned(recipe, by_step)
    with pytest.raises(Interrupted):
        fine_tuned(recipe, by_step, stop_after=stop_after)
    stopped = MemoryLog(stop_after=stop_after)
    model = without_norms()
    model.recipe = recipe
    group = Group(tuple(model.network.parameters()), Optim(OptimConfig("adamw", 0.01), by_step))
    with pytest.raises(Interrupted):
        run_stage(model, Stage("finetune", 2, (group,), (CLEAN,)), TinyData(), stopped)
    again, _ = fine_tuned(recipe, by_step, state=stopped.states[-1])
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))


ALL = ["--weight_optimizer", "adamw", "--score_optimizer", "adamw", "--warmup_epochs", 1,
       "--schedule_by", "step", "--label_smoothing", 0.1, "--clip_grad", 1, "--accumulate", 2,
       "--epochs", 2]  # fmt: skip
AUGMENTED = ["--augment", "trivial", "--mixup", 0.2, "--cutmix", 1, "--epochs", 2]


@pytest.mark.parametrize("words", [
    pytest.param(ALL, id="recipe"),
    pytest.param(AUGMENTED, id="augmentation", marks=pytest.mark.slow)])  # fmt: skip
def test_such_a_run_is_another_run_and_goes_on_bit_identically(
    tmp_path: Path, words: list[object]
) -> None:
    whole = run(tmp_path / "whole", *QUICK, *words)
    stop = (StageLog, "answer_stop", 3, send("SIGTERM"), False)
    stopped = forked(tmp_path / "stopped", *QUICK, *words, before=lambda: at_call(*stop))
    assert stopped.code == 75
    again = run(tmp_path / "stopped", *QUICK, *words)
    assert hashes(again.folder) == hashes(whole.folder)
    assert again.folder.name != run(tmp_path / "plain", *QUICK, "--epochs", 2).folder.name



def averaged(log: MemoryLog, ema: float = 0.4) -> tuple[Any, list[dict[str, Tensor]]]:
    """A model after a stage of two epochs, of three steps each, and its weights after each step."""
    model, steps = tiny_model(), []
    model.recipe = Recipe(ema=ema)

    def renew() -> None:
        with torch.no_grad():
            model.network[0].weight[0] = 0  # a mask
        steps.append({n: t.detach().clone() for n, t in model.network.state_dict().items()})

    renew()
    group = Group(tuple(model.network.parameters()), Optim(OptimConfig("sgd", 0.1)))
    stage = Stage("finetune", 2, (group,), (CLEAN,), renew=renew, keep_best=True)
    run_stage(model, stage, TinyData(), log)
    return model, steps


def test_the_average_moves_by_a_decay_that_grows() -> None:
    model, (start, *steps) = averaged(MemoryLog())
    decays = (0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4)
    found = model.network.state_dict()
    for name in found.keys() - {"1.num_batches_tracked"}:
        wanted = start[name].double()
        for decay, now in zip(decays, steps, strict=True):
            wanted = decay * wanted + (1 - decay) * now[name].double()
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-6)
    assert found["1.num_batches_tracked"] == 6 and not found["0.weight"][0].any()


def test_the_accuracy_after_an_epoch_is_that_of_the_average() -> None:
    log = MemoryLog()
    model, _ = averaged(log)
    assert log.rows[-1]["test_loss"] == evaluate(model, TinyData().test).mean_loss


def test_training_does_not_see_the_average() -> None:
    plain, log = MemoryLog(), MemoryLog()
    averaged(plain, ema=0.0)
    averaged(log)
    assert [row["clean_loss"] for row in log.rows] == [row["clean_loss"] for row in plain.rows]


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_average_goes_on_bit_identically(stop_after: int) -> None:
    (whole, _), stopped = averaged(MemoryLog()), MemoryLog(stop_after=stop_after)
    with pytest.raises(Interrupted):
        averaged(stopped)
    again, _ = averaged(MemoryLog(state=stopped.states[-1]))
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))
