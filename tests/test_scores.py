"""Learned scores: where they start, their gradient, and what the search moves."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, SIZE, MemoryLog, TinyData, TinyView, tiny_model
from searches import score_gradient
from torch import Tensor, nn

from models.classifier import PromptedClassifier
from pruning.masks import kept_count, prunable
from pruning.method import Search
from pruning.scores import LearnedScores, initial_score, learn_masks
from pruning.selection import pruned_count, select_top
from pruning.stage import CLEAN, PROMPTED
from utils.optim import Optim, OptimConfig

BOTH = (PROMPTED, CLEAN)
TOTAL = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 6


def optim(kind: str = "adam", lr: float = 0.05) -> Optim:
    return Optim(OptimConfig(kind, lr, 1e-4))


def search(
    model: PromptedClassifier, views: tuple[str, ...] = BOTH, epochs: int = 1, kind: str = "adam"
) -> Search:
    return Search(
        model, TinyData(), 0.4, epochs, views,
        weight_optim=optim(kind), score_optim=optim(kind), prompt_optim=optim(kind),
        log=MemoryLog(),
    )  # fmt: skip


def steps(count: int) -> TinyData:
    """Data of so many steps an epoch."""
    views = {name: TinyView(name, 8 * count) for name in ("clean", "prompted")}
    return TinyData(**views)


def test_initial_scores_of_a_linear_layer_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 4.0, -1.0]])
    unit = math.sqrt(6 / 3) / 4  # three inputs, the largest weight is 4
    torch.testing.assert_close(initial_score(weight), unit * weight)


def test_initial_scores_of_a_convolution_count_inputs_times_kernel() -> None:
    weight = torch.zeros(5, 2, 3, 3)
    weight[4, 1, 2, 2] = -0.1
    assert initial_score(weight)[4, 1, 2, 2].item() == pytest.approx(-math.sqrt(6 / 18))


def test_groups_count_as_fewer_inputs() -> None:
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    largest = initial_score(depthwise.weight.detach()).abs().max().item()
    assert largest == pytest.approx(math.sqrt(6 / 9))


def test_an_all_zero_layer_gets_zeros() -> None:
    assert torch.equal(initial_score(torch.zeros(2, 3)), torch.zeros(2, 3))


class Gradient:
    """The score gradient of one clean batch in float64, and the loss for any real-valued mask."""

    def __init__(self) -> None:
        self.model = tiny_model().double().train()
        draw = torch.Generator().manual_seed(1)
        self.x = torch.rand(8, 3, SIZE, SIZE, generator=draw, dtype=torch.float64)
        self.y = torch.randint(0, CLASSES, (8,), generator=draw)
        self.learned = LearnedScores(self.model.network, 0.4)
        self.weights = list(prunable(self.model.network).values())
        self.dense = torch.cat([weight.detach().flatten() for weight in tiny_weights()])
        self.mask = select_top(self.learned.flat_scores.detach().abs(), 0.4)
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.learned.gradients()
        self.scores_grad = score_gradient(self.learned)

    @torch.no_grad()
    def loss(self, mask: Tensor) -> float:
        parts = (self.dense * mask).split([weight.numel() for weight in self.weights])
        for weight, part in zip(self.weights, parts, strict=True):
            weight.copy_(part.view(weight.shape))
        return F.cross_entropy(self.model(self.x), self.y).item()

    def slope(self, place: int, step: float = 1e-6) -> float:
        """dL/dm at one place by central differences, times the sign of its score."""
        up, down = self.mask.double(), self.mask.double()
        up[place] += step
        down[place] -= step
        rise = (self.loss(up) - self.loss(down)) / (2 * step)
        return rise * math.copysign(1, self.learned.flat_scores[place].item())


def tiny_weights() -> list[nn.Parameter]:
    return list(prunable(tiny_model().double().network).values())


@pytest.mark.parametrize("kept", [True, False])
def test_score_gradients_match_finite_differences_of_a_relaxed_mask(kept: bool) -> None:
    gradient = Gradient()
    grad = gradient.scores_grad
    places = ((gradient.mask == kept) & (grad != 0)).nonzero().flatten()[::17].tolist()
    numeric = [gradient.slope(place) for place in places]
    assert len(places) > 15
    torch.testing.assert_close(grad[places], torch.tensor(numeric).double(), rtol=1e-5, atol=1e-8)


def test_pruned_places_get_gradient() -> None:
    gradient = Gradient()
    share = (gradient.scores_grad[~gradient.mask] != 0).double().mean()
    assert share > 0.5


def test_a_score_of_zero_gets_no_gradient() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.network[7].weight[5] = 0  # a row that the mapping uses, so that its gradient is not 0
    learned = LearnedScores(model.network, 0.4)
    F.cross_entropy(model(torch.rand(4, 3, SIZE, SIZE)), torch.zeros(4).long()).backward()
    assert model.network[7].weight.grad[5].any()
    learned.gradients()
    assert not learned.parts(score_gradient(learned))["7.weight"][5].any()


def test_rows_of_the_head_that_are_not_mapped_get_no_gradient() -> None:
    gradient = Gradient()
    head = gradient.learned.parts(gradient.scores_grad)["7.weight"]
    assert not head[[2, 4]].any() and head[[0, 1, 3, 5]].any()


def test_the_network_is_masked_by_the_initial_scores_at_once() -> None:
    model, dense = tiny_model(), tiny_model()
    masks = LearnedScores(model.network, 0.4).masks()
    for name, weight in prunable(model.network).items():
        torch.testing.assert_close(
            weight, dense.network.get_parameter(name) * masks[name], rtol=0, atol=0
        )


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_pruned_weights_are_zeros_without_a_sign(floor: float) -> None:
    """Negative weights too: a product with the mask would leave -0.0."""
    network = tiny_model().network
    pruned = ~LearnedScores(network, 0.4, floor).keep()
    weights = torch.cat([weight.detach().flatten() for weight in prunable(network).values()])
    assert not weights[pruned].any() and not weights[pruned].signbit().any()


def test_the_mask_follows_the_absolute_scores_when_it_is_renewed() -> None:
    learned = LearnedScores(tiny_model().network, 0.4)
    with torch.no_grad():
        learned.flat_scores.copy_(-torch.arange(TOTAL) / TOTAL)
    learned.renew()
    kept = torch.cat([mask.flatten() for mask in learned.masks().values()])
    assert kept.tolist() == [place >= pruned_count(TOTAL, 0.4) for place in range(TOTAL)]


def test_a_weight_comes_back_with_its_dense_value() -> None:
    model, dense = tiny_model(), tiny_model()
    learned = LearnedScores(model.network, 0.4)
    with torch.no_grad():
        learned.flat_scores.neg_().add_(5).mul_(learned.keep())
        learned.renew()
        learned.flat_scores.fill_(1)
    learned.density = 1.0
    learned.renew()
    assert torch.equal(model.network[3].weight, dense.network[3].weight)


def test_masks_that_were_handed_out_do_not_change_later() -> None:
    learned = LearnedScores(tiny_model().network, 0.4)
    masks = learned.masks()
    before = {name: mask.clone() for name, mask in masks.items()}
    with torch.no_grad():
        learned.flat_scores.copy_(learned.flat_scores.flip(0))
    learned.renew()
    assert all(torch.equal(masks[name], before[name]) for name in masks)


def test_the_search_returns_the_exact_count() -> None:
    masks = learn_masks(search(tiny_model(), epochs=2))
    assert kept_count(masks) == TOTAL - int((1 - 0.4) * TOTAL)


def test_the_mask_is_renewed_after_each_half_step(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor] = []
    renew = LearnedScores.renew

    def noted(learned: LearnedScores) -> None:
        renew(learned)
        masks.append(learned.keep().clone())

    monkeypatch.setattr(LearnedScores, "renew", noted)
    learn_masks(replace(search(tiny_model()), data=steps(1)))
    start, prompted, clean = masks
    assert not torch.equal(start, prompted) and not torch.equal(prompted, clean)


def test_the_model_leaves_the_search_with_the_returned_masks() -> None:
    model = tiny_model()
    masks = learn_masks(search(model))
    for name, weight in prunable(model.network).items():
        assert torch.equal(weight != 0, masks[name])


def after_search(
    views: tuple[str, ...] = BOTH, epochs: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State of the model before and after a search."""
    model = tiny_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    learn_masks(search(model, views, epochs))
    return before, model.state_dict()


def test_kept_weights_have_their_pretrained_values() -> None:
    model, dense = tiny_model(), tiny_model()
    masks = learn_masks(search(model))
    for name, weight in prunable(model.network).items():
        kept = masks[name]
        assert torch.equal(weight[kept], dense.network.get_parameter(name)[kept])


@pytest.mark.parametrize("key", ["3.bias", "7.bias", "1.weight", "1.bias"])
def test_biases_and_the_affine_part_of_norms_stay_in_the_search(key: str) -> None:
    before, after = after_search()
    assert torch.equal(before[f"network.{key}"], after[f"network.{key}"])


@pytest.mark.parametrize("key", ["1.running_mean", "1.running_var"])
def test_statistics_of_norms_move_in_the_search(key: str) -> None:
    before, after = after_search()
    assert not torch.equal(before[f"network.{key}"], after[f"network.{key}"])


def test_both_half_steps_move_the_statistics() -> None:
    _, after = after_search()
    assert after["network.1.num_batches_tracked"] == 2 * 3


def test_a_prompted_search_moves_the_prompt() -> None:
    _, after = after_search()
    assert after["prompt.program"].any()


@pytest.mark.parametrize("views", [(CLEAN,), (CLEAN, CLEAN)])
def test_a_clean_search_leaves_the_prompt(views: tuple[str, ...]) -> None:
    _, after = after_search(views)
    assert not after["prompt.program"].any()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_only_the_prompted_half_step_moves_the_prompt(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps, so that momentum and Adam's moments are there to move it by themselves."""
    model = tiny_model()
    programs = [model.prompt.program.detach().clone()]
    renew: Callable[[LearnedScores], None] = LearnedScores.renew

    def noted(learned: LearnedScores) -> None:
        renew(learned)
        programs.append(model.prompt.program.detach().clone())

    monkeypatch.setattr(LearnedScores, "renew", noted)
    learn_masks(search(model, kind=kind))
    moved = [not torch.equal(a, b) for a, b in zip(programs[1:], programs[2:], strict=False)]
    assert moved == [True, False] * 3


def test_no_epochs_change_nothing_but_the_mask() -> None:
    model, dense = tiny_model(), tiny_model()
    masks = learn_masks(search(model, epochs=0))
    expected = dense.state_dict()
    for name in masks:
        expected[f"network.{name}"] *= masks[name]
    after = model.state_dict()
    assert all(torch.equal(after[key], expected[key]) for key in expected)


def test_no_epochs_give_the_mask_of_the_initial_scores() -> None:
    masks = learn_masks(search(tiny_model(), epochs=0))
    weights = prunable(tiny_model().network).values()
    start = torch.cat([initial_score(weight.detach()).flatten() for weight in weights])
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert torch.equal(kept, select_top(start.abs(), 0.4))


def test_the_labels_are_mapped_with_the_masked_network() -> None:
    model, seen = tiny_model(), []
    remap = lambda: seen.append(int((model.network[3].weight == 0).sum()))  # noqa: E731
    learn_masks(replace(search(model, epochs=0), remap=remap))
    assert len(seen) == 1 and seen[0] > 0


def test_one_step_moves_every_score_that_has_a_gradient_or_decays() -> None:
    model = tiny_model()
    run = replace(search(model, (CLEAN,)), data=steps(1))
    learn_masks(run)
    weights = prunable(tiny_model().network).values()
    start = torch.cat([initial_score(weight.detach()).flatten() for weight in weights])
    assert not torch.equal(run.log.states[-1]["tensors"]["scores"], start)


def test_scores_are_left_out_of_the_model() -> None:
    model = tiny_model()
    keys = list(model.state_dict())
    learn_masks(search(model))
    assert list(model.state_dict()) == keys
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
