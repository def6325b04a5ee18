"""The training loop: order of the updates, schedules, and going on after a stop."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import MemoryLog, TinyData, TinyView, tiny_model
from torch import Tensor, nn

from models.classifier import PromptedClassifier
from pruning.masks import MaskKeeper, apply_masks, keep_top, prunable
from pruning.measure import Counts, Tally, evaluate, hits
from pruning.method import PRUNE_MODES, Search, prompt_groups, stage_views
from pruning.scores import learn_masks
from pruning.stage import CLEAN, PROMPTED, Group, Stage
from pruning.training import run_stage
from utils.errors import Interrupted, NumericError
from utils.optim import Optim, OptimConfig, ScheduleConfig

BOTH = (PROMPTED, CLEAN)


def optim(kind: str = "sgd", lr: float = 0.05, scheduler: str = "cosine") -> Optim:
    return Optim(OptimConfig(kind, lr, 1e-3, scheduler))


def weights(model: PromptedClassifier, settings: Optim | None = None) -> Group:
    return Group(tuple(model.network.parameters()), settings or optim())


def finetuning(model: PromptedClassifier, epochs: int = 2, **options: Any) -> Stage:
    """Both groups, with a mask of half of the weights, as in the program."""
    dense = prunable(model.network).items()
    masks = keep_top({name: weight.detach().abs() for name, weight in dense}, 0.5)
    apply_masks(model.network, masks)
    prompt = Group((model.prompt.program,), optim("adam"))
    keeper = MaskKeeper(model.network, masks)
    return Stage("finetune", epochs, (weights(model), prompt), renew=keeper, **options)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Recorder(PromptedClassifier):
    """A classifier that notes what it is shown."""

    @classmethod
    def of(cls, model: PromptedClassifier) -> "Recorder":
        model.__class__, model.seen = cls, []
        return model

    def forward(self, x: Tensor, prompted: bool = False) -> Tensor:
        if self.training:
            self.seen.append((prompted, x.clone()))
        return super().forward(x, prompted)


def shown(views: tuple[str, ...]) -> list[tuple[bool, Tensor]]:
    model = Recorder.of(tiny_model())
    run_stage(model, Stage("finetune", 1, (weights(model),), views), TinyData(), MemoryLog())
    return model.seen


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("score+vp_weight+vp", (BOTH, BOTH)),
        ("score+vp_weight", (BOTH, (CLEAN, CLEAN))),
        ("weight+vp_score", ((CLEAN, CLEAN), BOTH)),
        ("score_weight", ((CLEAN,), (CLEAN,))),
    ],
)
def test_views_of_search_and_fine_tuning_of_each_mode(mode: str, expected: tuple) -> None:
    prompted = PRUNE_MODES[mode]
    assert tuple(stage_views(stage, any(prompted)) for stage in prompted) == expected


def test_a_prompted_batch_comes_first_then_a_clean_one() -> None:
    assert [prompted for prompted, _ in shown(BOTH)] == [True, False] * 3


def test_both_views_give_their_own_images() -> None:
    data = TinyData()
    for prompted, batch in shown(BOTH):
        own = (data.prompted if prompted else data.clean).x
        assert all((own == image).flatten(1).all(1).any() for image in batch)


def test_two_clean_views_show_the_same_batch_twice() -> None:
    seen = shown((CLEAN, CLEAN))
    assert len(seen) == 6 and not any(prompted for prompted, _ in seen)
    first, second = (torch.stack([x for _, x in seen[half::2]]) for half in (0, 1))
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_a_clean_view_alone_takes_one_step_an_iteration() -> None:
    assert [prompted for prompted, _ in shown((CLEAN,))] == [False] * 3


def test_an_epoch_ends_with_the_shorter_view() -> None:
    model = Recorder.of(tiny_model())
    data = TinyData(prompted=TinyView("prompted", 9))
    run_stage(model, Stage("finetune", 1, (weights(model),)), data, MemoryLog())
    assert len(model.seen) == 2 * 2


def test_each_epoch_has_an_order_of_its_own() -> None:
    model = Recorder.of(tiny_model())
    run_stage(model, Stage("finetune", 2, (weights(model),), (CLEAN,)), TinyData(), MemoryLog())
    assert not torch.equal(model.seen[0][1], model.seen[3][1])


def test_one_step_is_one_step_of_plain_sgd() -> None:
    """The whole loop against five lines of torch."""
    data = TinyData(clean=TinyView("clean", 8))
    model, plain = tiny_model(), tiny_model().train()
    run_stage(model, Stage("s", 1, (weights(model),), (CLEAN,)), data, MemoryLog())
    optimizer = torch.optim.SGD(plain.network.parameters(), 0.05, 0.9, weight_decay=1e-3)
    images, labels = next(data.clean.batches(*MemoryLog().key, "s", 0))
    F.cross_entropy(plain(images), labels).backward()
    optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def changed(groups: Any, views: tuple[str, ...] = BOTH) -> set[str]:
    """Names of the parameters that one step moves."""
    model = tiny_model()
    before = snapshot(model)
    data = TinyData(TinyView("clean", 8), TinyView("prompted", 8))
    run_stage(model, Stage("s", 1, groups(model), views), data, MemoryLog())
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_one_step_changes_the_prompt_alone_when_it_is_the_only_group() -> None:
    moved = changed(lambda model: (Group((model.prompt.program,), optim()),), (PROMPTED,))
    assert moved == {"prompt.program"}


def test_one_step_changes_the_network_alone_when_it_is_the_only_group() -> None:
    everything = {name for name, _ in tiny_model().named_parameters()}
    assert changed(lambda model: (weights(model),)) == everything - {"prompt.program"}


def test_one_step_changes_one_parameter_when_that_is_the_group() -> None:
    moved = changed(lambda model: (Group((model.network[3].bias,), optim()),), (CLEAN,))
    assert moved == {"network.3.bias"}


def test_the_prompt_is_a_group_where_a_view_shows_it() -> None:
    prompt = tiny_model().prompt
    (group,) = prompt_groups(prompt, BOTH, optim())
    assert group.params == (prompt.program,)


@pytest.mark.parametrize("views", [(CLEAN,), (CLEAN, CLEAN)])
def test_the_prompt_is_no_group_without_a_prompted_view(views: tuple[str, ...]) -> None:
    assert prompt_groups(tiny_model().prompt, views, optim()) == ()


def test_no_prompt_is_no_group() -> None:
    assert prompt_groups(None, BOTH, optim()) == ()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_clean_half_step_leaves_the_prompt_in_fine_tuning(kind: str) -> None:
    model, programs = tiny_model(), []
    groups = (weights(model), Group((model.prompt.program,), optim(kind)))
    note = lambda: programs.append(model.prompt.program.detach().clone())  # noqa: E731
    run_stage(model, Stage("s", 2, groups, renew=note), TinyData(), MemoryLog())
    prompted, clean = programs[::2], programs[1::2]
    assert all(torch.equal(a, b) for a, b in zip(prompted, clean, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(clean, prompted[1:], strict=False))


def test_no_epochs_change_nothing() -> None:
    model, log = tiny_model(), MemoryLog()
    before = snapshot(model)
    run_stage(model, Stage("s", 0, (weights(model),)), TinyData(), log)
    assert same(before, model.state_dict()) and not log.rows and log.passes == 0


def test_passes_count_epochs_times_views() -> None:
    log, model = MemoryLog(), tiny_model()
    run_stage(model, Stage("s", 3, (weights(model),)), TinyData(), log)
    assert log.passes == 6


def rates(scheduler: str, epochs: int, shares: tuple[float, ...] = (0.5, 0.72)) -> list[float]:
    """The learning rate of each epoch of a stage."""
    model, log = tiny_model(), MemoryLog()
    settings = Optim(
        OptimConfig("sgd", 0.01, 0, scheduler), ScheduleConfig(decreasing_step=shares)
    )
    data = TinyData(clean=TinyView("clean", 2), test=TinyView("test", 2))
    stage = Stage("s", epochs, (Group((model.network[3].bias,), settings),), (CLEAN,))
    run_stage(model, stage, data, log)
    return [row["lr"][0] for row in log.rows]


@pytest.mark.parametrize("epochs", [1, 2, 7, 30])
def test_cosine_rates(epochs: int) -> None:
    expected = [0.005 * (1 + math.cos(math.pi * epoch / epochs)) for epoch in range(epochs)]
    assert rates("cosine", epochs) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epochs", [3, 10, 25, 30])
def test_multistep_rates(epochs: int) -> None:
    first, second = int(0.5 * epochs), int(0.72 * epochs)
    expected = [0.01 * 0.1 ** ((epoch >= first) + (epoch >= second)) for epoch in range(epochs)]
    assert rates("multistep", epochs) == pytest.approx(expected)


def test_multistep_of_thirty_epochs_falls_at_15_and_21() -> None:
    assert rates("multistep", 30) == pytest.approx([1e-2] * 15 + [1e-3] * 6 + [1e-4] * 9)


def test_milestones_below_one_are_dropped() -> None:
    assert rates("multistep", 2, (0.1, 0.4, 0.5)) == pytest.approx([0.01, 0.001])


def test_constant_rates() -> None:
    assert rates("constant", 5) == [0.01] * 5


def interrupted(make: Any, run: Any, stop_after: int) -> tuple[Any, MemoryLog]:
    """The model and log of a run that stops after so many steps and goes on from its state."""
    log = MemoryLog(stop_after)
    with pytest.raises(Interrupted):
        run(make(), log)
    model, resumed = make(), MemoryLog(state=copy.deepcopy(log.states[-1]))
    resumed.rows = log.rows
    torch.manual_seed(stop_after)  # another process has another random state
    run(model, resumed)
    return model, resumed


def deep(value: Any) -> Any:
    """Nested values with tensors as lists, to compare."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: deep(inner) for key, inner in value.items()}
    return [deep(inner) for inner in value] if isinstance(value, list | tuple) else value


EPOCHS, STEPS = 3, 3
EVERY_STEP = range(1, EPOCHS * STEPS + 1)


@pytest.mark.parametrize("kind", ["pad", "random"])
@pytest.mark.parametrize("stop_after", EVERY_STEP)
def test_fine_tuning_goes_on_bit_identically(stop_after: int, kind: str) -> None:
    def run(model: PromptedClassifier, log: MemoryLog) -> None:
        run_stage(model, finetuning(model, EPOCHS), TinyData(), log)

    whole, log = tiny_model(kind=kind), MemoryLog()
    run(whole, log)
    model, resumed = interrupted(lambda: tiny_model(kind=kind), run, stop_after)
    assert same(whole.state_dict(), model.state_dict())
    assert resumed.rows == log.rows
    assert deep(resumed.states[-1]) == deep(log.states[-1])


@pytest.mark.filterwarnings("error")
def test_going_on_at_the_end_of_an_epoch_gives_no_warning() -> None:
    """torch warns of a schedule that steps before its optimizer; this one stepped before."""

    def run(model: PromptedClassifier, log: MemoryLog) -> None:
        run_stage(model, finetuning(model, 1), TinyData(), log)

    interrupted(tiny_model, run, STEPS)


@pytest.mark.parametrize("stop_after", EVERY_STEP)
def test_a_search_goes_on_bit_identically(stop_after: int) -> None:
    found: list[dict[str, Tensor]] = []

    def run(model: PromptedClassifier, log: MemoryLog) -> None:
        settings = optim("adam")
        search = Search(model, TinyData(), 0.4, EPOCHS, BOTH, settings, settings, settings, log)
        found.append(learn_masks(search))

    whole, log = tiny_model(), MemoryLog()
    run(whole, log)
    model, resumed = interrupted(tiny_model, run, stop_after)
    assert same(whole.state_dict(), model.state_dict())
    assert same(*found) and resumed.rows == log.rows
    assert deep(resumed.states[-1]) == deep(log.states[-1])


@pytest.mark.parametrize("stop_after", [1, 3, 4, 9])
def test_the_best_epoch_goes_on_bit_identically(stop_after: int) -> None:
    def run(model: PromptedClassifier, log: MemoryLog) -> None:
        data = TinyData(val=TinyView("val"))
        run_stage(model, finetuning(model, EPOCHS, keep_best=True), data, log)

    whole = tiny_model()
    run(whole, MemoryLog())
    model, _ = interrupted(tiny_model, run, stop_after)
    assert same(whole.state_dict(), model.state_dict())


@pytest.mark.parametrize("stop_after", EVERY_STEP)
def test_a_mapping_made_each_epoch_is_not_made_again_within_one(stop_after: int) -> None:
    """Each remap moves every class on by one, so that one too many or too few would show."""
    calls: list[int] = []

    def run(model: PromptedClassifier, log: MemoryLog) -> None:
        def remap() -> None:
            calls.append(1)
            model.label_map = (model.label_map + 1) % 6

        run_stage(model, finetuning(model, EPOCHS, before_epoch=remap), TinyData(), log)

    model, _ = interrupted(tiny_model, run, stop_after)
    assert len(calls) == EPOCHS
    assert torch.equal(model.label_map, (tiny_model().label_map + EPOCHS) % 6)


def test_a_finished_stage_is_not_trained_again() -> None:
    model, log = tiny_model(), MemoryLog()
    run_stage(model, finetuning(model, 1), TinyData(), log)
    again, resumed = Recorder.of(tiny_model()), MemoryLog(state=copy.deepcopy(log.states[-1]))
    run_stage(again, finetuning(again, 1), TinyData(), resumed)
    assert again.seen == [] and same(model.state_dict(), again.state_dict())
    assert resumed.passes == log.passes


def test_a_state_of_another_stage_is_not_taken() -> None:
    model, log = tiny_model(), MemoryLog()
    run_stage(model, finetuning(model, 1), TinyData(), log)
    other = MemoryLog(state=log.states[-1] | {"stage": "search"})
    fresh = tiny_model()
    run_stage(fresh, finetuning(fresh, 1), TinyData(), other)
    assert len(other.rows) == 1


class Marked:
    """A validation view whose accuracies are given, an epoch each; it marks model and mapping."""

    def __init__(self, model: PromptedClassifier, correct: list[int]) -> None:
        self.model, self.correct = model, iter(correct)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        right = next(self.correct)
        images = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        predicted = self.model(images).argmax(1)
        yield images, torch.where(torch.arange(10) < right, predicted, (predicted + 1) % 4)


def best_of(correct: list[int], keep_best: bool = True) -> tuple[int, PromptedClassifier]:
    """The epoch whose model a stage ends with, told by what the model was after each."""
    model, kept = tiny_model(), []

    class Log(MemoryLog):
        def epoch(self, row: dict[str, Any], seen: nn.Module) -> None:
            kept.append(snapshot(seen))

    def remap() -> None:
        model.label_map = (model.label_map + 1) % 6

    data = TinyData(val=Marked(model, correct))
    stage = finetuning(model, len(correct), keep_best=keep_best, before_epoch=remap)
    run_stage(model, stage, data, Log())
    (epoch,) = [n for n, state in enumerate(kept) if same(state, model.state_dict())]
    return epoch, model


@pytest.mark.parametrize(
    ("correct", "epoch"),
    [([3, 7, 5], 1), ([9, 2, 1], 0), ([1, 2, 3], 2), ([4, 8, 8], 1), ([5, 5, 5], 0),
     ([0, 0, 0], 0)],
)  # fmt: skip
def test_the_earliest_best_validation_epoch_is_kept(correct: list[int], epoch: int) -> None:
    """The whole state is compared: weights, statistics, prompt and label mapping."""
    assert best_of(correct)[0] == epoch


def test_the_last_epoch_counts_when_the_best_is_not_asked_for() -> None:
    assert best_of([9, 2, 1], keep_best=False)[0] == 2


def test_the_last_epoch_counts_without_a_validation_view() -> None:
    one, other = tiny_model(), tiny_model()
    run_stage(one, finetuning(one, keep_best=True), TinyData(), MemoryLog())
    run_stage(other, finetuning(other), TinyData(), MemoryLog())
    assert same(one.state_dict(), other.state_dict())


def test_the_test_images_are_not_measured_when_there_are_validation_images() -> None:
    model, log = tiny_model(), MemoryLog()
    run_stage(model, finetuning(model, 1), TinyData(val=TinyView("val")), log)
    assert "val_accuracy" in log.rows[0] and "test_accuracy" not in log.rows[0]


def test_measuring_does_not_change_the_training() -> None:
    class Blind(MemoryLog):
        def wants_test(self, epoch: int, epochs: int) -> bool:
            return False

    one, other = tiny_model(), tiny_model()
    run_stage(one, finetuning(one), TinyData(), MemoryLog())
    run_stage(other, finetuning(other), TinyData(), Blind())
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_exit_code_3(bad: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.network[7].bias[0] = bad
    with pytest.raises(NumericError, match="not finite: loss.* stage s, epoch 1, step 1") as caught:
        run_stage(model, Stage("s", 1, (weights(model),), (CLEAN,)), TinyData(), MemoryLog())
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_network_that_diverges_only_when_measured_names_stage_and_epoch(name: str) -> None:
    model, view = tiny_model(), TinyView(name)
    view.x[0] = math.nan
    stage = Stage("s", 1, (weights(model),), (CLEAN,))
    with pytest.raises(NumericError, match="diverged, .* rate, at density 0.5, stage s, epoch 1"):
        run_stage(model, stage, TinyData(**{name: view}), MemoryLog())


def diverge(log: MemoryLog) -> None:
    """One step, of a finite loss, that ends in infinity."""
    model, data = tiny_model(), TinyData(clean=TinyView("clean", 8))
    group = weights(model, optim(lr=1e39))
    run_stage(model, Stage("s", 1, (group,), (CLEAN,)), data, log)


@pytest.mark.parametrize("log", [MemoryLog(), MemoryLog(stop_after=1)], ids=["end", "stop"])
def test_a_state_that_is_not_finite_is_never_kept(log: MemoryLog) -> None:
    with pytest.raises(NumericError, match="not finite"):
        diverge(log)
    assert log.states == [] and log.rows == []


@pytest.mark.parametrize("fails", [False, True])
def test_requires_grad_is_put_back(fails: bool) -> None:
    model = tiny_model()
    model.network[3].bias.requires_grad_(False)
    if fails:
        with torch.no_grad():
            model.network[7].bias[0] = math.nan
    before = [p.requires_grad for p in model.parameters()]
    stage = Stage("s", 1, (Group((model.prompt.program,), optim()),), (PROMPTED,))
    try:
        run_stage(model, stage, TinyData(), MemoryLog())
    except NumericError:
        assert fails
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


def test_rows_hold_the_mean_loss_and_accuracy_of_each_view() -> None:
    model, log = tiny_model(), MemoryLog()
    still = Group(tuple(model.network.parameters()), Optim(OptimConfig("sgd", 0.0, 0.0)))
    data = TinyData(clean=TinyView("clean", 20))
    run_stage(model, Stage("s", 1, (still,), (CLEAN,)), data, log)
    fresh, total, right = tiny_model().train(), 0.0, 0
    for images, labels in data.clean.batches(*log.key, "s", 0):
        logits = fresh(images)
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
    assert log.rows[0]["clean_loss"] == pytest.approx(total / 20, rel=1e-5)
    assert log.rows[0]["clean_accuracy"] == 100 * right / 20


def test_counts_add_over_batches() -> None:
    tally = Tally(torch.device("cpu"))
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 0.0]])
    tally.add(torch.tensor(0.5), hits(logits, torch.tensor([0, 0, 0])), 3)
    tally.add(torch.tensor(2.0), hits(logits[:1], torch.tensor([1])), 1)
    assert tally.counts() == Counts(3.5, 2, 4)


def test_accuracy_is_in_percent_and_nothing_seen_is_zero() -> None:
    assert (Counts(6.0, 1, 4).accuracy, Counts(6.0, 1, 4).mean_loss) == (25.0, 1.5)
    assert (Counts(0.0, 0, 0).accuracy, Counts(0.0, 0, 0).mean_loss) == (0.0, 0.0)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_puts_the_mode_back(training: bool) -> None:
    model = tiny_model().train(training)
    evaluate(model, TinyView("test"))
    assert model.training is training and model.network[1].training is training


def test_evaluation_changes_nothing() -> None:
    model = tiny_model()
    before = snapshot(model)
    evaluate(model, TinyView("test"), prompted=True)
    assert same(before, model.state_dict()) and all(p.grad is None for p in model.parameters())


def test_evaluation_is_without_the_prompt_unless_asked() -> None:
    model = tiny_model()
    plain = evaluate(model, TinyView("test"))
    with torch.no_grad():
        model.prompt.program.fill_(0.5)
    assert evaluate(model, TinyView("test")) == plain
    assert evaluate(model, TinyView("test"), prompted=True) != plain


def test_evaluation_sees_every_image_in_the_last_short_batch_too() -> None:
    assert evaluate(tiny_model(), TinyView("test", 21)).seen == 21


def test_evaluation_repeats_for_a_random_prompt() -> None:
    model = tiny_model(kind="random")
    with torch.no_grad():
        model.prompt.program.normal_(0, 9, generator=torch.Generator().manual_seed(0))
    counts = [evaluate(model, TinyView("test"), prompted=True) for _ in range(3)]
    assert counts[0] == counts[1] == counts[2]


def dropping() -> PromptedClassifier:
    model = tiny_model()
    model.network.insert(7, nn.Dropout(0.5))
    return model


def test_dropout_draws_from_the_key_alone() -> None:
    models = [dropping(), dropping()]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        run_stage(model, Stage("s", 1, (weights(model),)), TinyData(), MemoryLog())
    assert same(*(model.state_dict() for model in models))


def test_dropout_is_off_in_evaluation() -> None:
    model = dropping().train()
    assert evaluate(model, TinyView("test")) == evaluate(tiny_model().train(), TinyView("test"))


def test_the_key_of_the_level_decides_the_order() -> None:
    models = [tiny_model(), tiny_model()]
    for model, key in zip(models, [(7, 0.5), (9, 0.5)], strict=True):
        log = MemoryLog()
        log.key = key
        run_stage(model, Stage("s", 1, (weights(model),)), TinyData(), log)
    assert not same(*(model.state_dict() for model in models))


def test_stages_are_frozen_values() -> None:
    stage = Stage("s", 1, ())
    assert replace(stage, epochs=2).epochs == 2 and stage.epochs == 1


def test_a_stage_returns_the_counts_of_the_model_that_it_ends_with() -> None:
    model = tiny_model()
    counts = run_stage(model, finetuning(model), TinyData(), MemoryLog())
    assert counts == evaluate(model, TinyView("test"))


def test_a_stage_returns_no_counts_where_the_test_images_were_not_measured_last() -> None:
    model = tiny_model()
    data = TinyData(val=TinyView("val"))
    assert run_stage(model, finetuning(model, keep_best=True), data, MemoryLog()) is None
