"""Which weights stay: exact counts, ties, and pruned weights that are really zero."""

import math
from collections.abc import Iterator

import pytest
import torch
from conftest import MemoryLog, TinyData, tiny_model, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning.masks import (
    MaskKeeper,
    all_kept,
    apply_masks,
    keep_top,
    kept_count,
    layer_densities,
    prunable,
    total_count,
)
from pruning.stage import Group, Stage
from pruning.training import run_stage
from utils.counts import pruned_count
from utils.errors import NumericError
from utils.optim import Optim, OptimConfig

RESNET18 = 11_678_912
# Powers of ten apart, many equal, both zeros, subnormal and nearly the largest float32.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38]),
    st.integers(-3, 3).map(float),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
LINEAR = st.tuples(st.integers(1, 4), st.integers(1, 3))
KERNEL = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
SHAPES = st.lists(st.one_of(LINEAR, KERNEL), min_size=1, max_size=4)
DENSITIES = st.floats(0.001, 1.0)


@st.composite
def layers(draw: st.DrawFn, values: st.SearchStrategy = VALUES) -> dict[str, Tensor]:
    """Layers of any shapes; now and then all of their scores are equal."""
    chosen = draw(st.one_of(st.just(values), values.map(st.just)))
    return {
        f"layer{number}": torch.tensor(
            draw(st.lists(chosen, min_size=math.prod(shape), max_size=math.prod(shape)))
        ).view(shape)
        for number, shape in enumerate(draw(SHAPES))
    }


def flat(tensors: dict[str, Tensor]) -> list:
    return [value for tensor in tensors.values() for value in tensor.flatten().tolist()]


def by_sorting(values: list[float], density: float) -> list[bool]:
    """The definition: sort from high to low, equal ones in their order, and take the first."""
    order = sorted(range(len(values)), key=lambda place: -values[place])
    kept = order[: len(values) - int((1 - density) * len(values))]
    return [place in set(kept) for place in range(len(values))]


@pytest.mark.parametrize(
    ("density", "pruned"),
    [
        (0.6, 4_671_564), (0.5, 5_839_456), (0.4, 7_007_347), (0.3, 8_175_238),
        (0.2, 9_343_129), (0.1, 10_511_020), (0.05, 11_094_966), (0.01, 11_562_122), (1.0, 0),
    ],
)  # fmt: skip
def test_pruned_counts_of_resnet18(density: float, pruned: int) -> None:
    assert pruned_count(RESNET18, density) == pruned


def test_the_count_is_truncated_where_rounding_would_differ() -> None:
    assert pruned_count(RESNET18, 0.2) == round((1 - 0.2) * RESNET18) - 1


def test_the_highest_scores_over_all_layers_stay() -> None:
    scores = {"a": torch.tensor([[0.1, 0.9], [0.5, 0.3]]), "b": torch.tensor([[0.8, 0.2, 0.7]])}
    masks = keep_top(scores, 3 / 7)
    assert flat(masks) == [False, True, False, False, True, False, True]


def test_masks_have_the_shape_of_the_scores() -> None:
    masks = keep_top({"a": torch.rand(2, 3, 1, 1), "b": torch.rand(4, 5)}, 0.5)
    assert {name: mask.shape for name, mask in masks.items()} == {"a": (2, 3, 1, 1), "b": (4, 5)}


def test_of_equal_scores_the_first_stay() -> None:
    masks = keep_top({"a": torch.tensor([1.0, 2.0, 1.0, 1.0]), "b": torch.tensor([1.0])}, 0.6)
    assert flat(masks) == [True, True, True, False, False]


def test_all_equal_scores_give_the_exact_count() -> None:
    assert flat(keep_top({"a": torch.full((10,), 0.7)}, 0.3)) == [True] * 3 + [False] * 7


def test_all_zero_scores_give_the_exact_count() -> None:
    assert flat(keep_top({"a": torch.zeros(5)}, 0.4)) == [True, True, False, False, False]


def test_minus_zero_ties_with_zero() -> None:
    assert flat(keep_top({"a": torch.tensor([-0.0, 0.0, -0.0])}, 0.34)) == [True, True, False]


def test_density_one_keeps_zeros_too() -> None:
    assert flat(keep_top({"a": torch.tensor([0.0, 1.0])}, 1.0)) == [True, True]


def test_a_tiny_density_keeps_one_weight() -> None:
    assert flat(keep_top({"a": torch.tensor([1.0, 3.0, 2.0])}, 1e-6)) == [False, True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NumericError, match="not finite"):
        keep_top({"a": torch.tensor([1.0, bad, 2.0])}, 0.5)


def test_infinities_of_both_signs_do_not_cancel() -> None:
    with pytest.raises(NumericError):
        keep_top({"a": torch.tensor([math.inf, -math.inf, 1.0])}, 0.5)


def test_finite_scores_whose_sum_overflows_are_fine() -> None:
    assert flat(keep_top({"a": torch.tensor([3e38, 3e38, 1.0])}, 0.67)) == [True, True, True]


def test_a_wrong_score_is_refused_when_nothing_is_pruned() -> None:
    with pytest.raises(NumericError):
        keep_top({"a": torch.tensor([math.nan])}, 1.0)


@given(layers(), DENSITIES)
def test_any_scores_keep_the_exact_count(scores: dict[str, Tensor], density: float) -> None:
    total = len(flat(scores))
    assert kept_count(keep_top(scores, density)) == total - int((1 - density) * total)


@given(layers(), DENSITIES)
def test_the_same_scores_give_the_same_masks(scores: dict[str, Tensor], density: float) -> None:
    copies = {name: tensor.clone() for name, tensor in scores.items()}
    assert flat(keep_top(scores, density)) == flat(keep_top(copies, density))


@given(layers(), DENSITIES)
def test_masks_of_any_scores_have_their_shapes(scores: dict[str, Tensor], density: float) -> None:
    masks = keep_top(scores, density)
    assert {n: m.shape for n, m in masks.items()} == {n: s.shape for n, s in scores.items()}


@given(layers(), DENSITIES)
def test_any_scores_agree_with_sorting(scores: dict[str, Tensor], density: float) -> None:
    assert flat(keep_top(scores, density)) == by_sorting(flat(scores), density)


@given(layers(), DENSITIES, DENSITIES)
def test_a_sparser_mask_lies_inside_a_denser_one(
    scores: dict[str, Tensor], one: float, other: float
) -> None:
    sparse, dense = (flat(keep_top(scores, d)) for d in sorted((one, other)))
    assert not any(inner and not outer for inner, outer in zip(sparse, dense, strict=True))


@given(layers(), DENSITIES)
def test_selection_leaves_the_scores_alone(scores: dict[str, Tensor], density: float) -> None:
    before = {name: tensor.clone() for name, tensor in scores.items()}
    keep_top(scores, density)
    assert all(torch.equal(before[name], tensor) for name, tensor in scores.items())


def test_convolutions_and_linear_layers_are_prunable_and_nothing_else() -> None:
    assert list(prunable(tiny_network())) == ["0.weight", "3.weight", "7.weight"]


def test_a_network_without_weights_to_prune_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing|no convolution"):
        prunable(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))


def test_the_dense_masks_cover_every_prunable_weight() -> None:
    masks = all_kept(tiny_network())
    assert kept_count(masks) == total_count(masks) == 3 * 8 * 9 + 8 * 8 * 9 + 8 * 6


def test_layer_densities_are_shares_of_kept_weights() -> None:
    masks = {"a": torch.tensor([[True, False], [False, False]]), "b": torch.tensor([True, True])}
    assert layer_densities(masks) == {"a": 0.25, "b": 1.0}


def halves(network: nn.Module) -> dict[str, Tensor]:
    return keep_top({n: weight.detach().abs() for n, weight in prunable(network).items()}, 0.5)


def test_applied_masks_leave_kept_weights_alone() -> None:
    network, before = tiny_network(), tiny_network()
    masks = halves(network)
    apply_masks(network, masks)
    for name, weight in prunable(network).items():
        kept = masks[name]
        assert torch.equal(weight[kept], before.get_parameter(name)[kept])


def test_pruned_weights_are_plus_zero() -> None:
    network = nn.Sequential(nn.Linear(3, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[-2.0, 2.0, -0.0]]))
    apply_masks(network, {"0.weight": torch.zeros(1, 3, dtype=torch.bool)})
    assert not network[0].weight.signbit().any() and not network[0].weight.any()


@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_a_pruned_weight_that_is_not_finite_becomes_zero(wild: float) -> None:
    network = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[wild, 1.0]]))
    apply_masks(network, {"0.weight": torch.tensor([[False, True]])})
    assert network[0].weight.tolist() == [[0.0, 1.0]]


def test_biases_and_norms_are_not_touched() -> None:
    network, before = tiny_network(), tiny_network().state_dict()
    apply_masks(network, {n: torch.zeros_like(m) for n, m in all_kept(network).items()})
    weights = set(prunable(network))
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before.keys() - weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda masks: masks.pop("7.weight"),
        lambda masks: masks.update(extra=torch.ones(1, dtype=torch.bool)),
        lambda masks: masks.update({"7.weight": torch.ones(2, 2, dtype=torch.bool)}),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_masks_that_do_not_fit_are_refused_and_change_nothing(change) -> None:
    network, masks = tiny_network(), all_kept(tiny_network())
    masks = {name: ~mask for name, mask in masks.items()}
    change(masks)
    with pytest.raises(ValueError, match="do not fit the network: (7|extra)"):
        apply_masks(network, masks)
    assert torch.equal(network[0].weight, tiny_network()[0].weight)


@pytest.mark.parametrize("wild", [-2.0, 2.0, -0.0, math.inf, -math.inf, math.nan])
def test_whatever_a_step_makes_of_a_pruned_weight_becomes_plus_zero(wild: float) -> None:
    network = nn.Sequential(nn.Linear(2, 1))
    keep = MaskKeeper(network, {"0.weight": torch.tensor([[False, True]])})
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[wild, -3.0]]))
    keep()
    assert network[0].weight.tolist() == [[0.0, -3.0]]
    assert network[0].weight.signbit().tolist() == [[False, True]]


class Watch:
    """MaskKeeper, with the largest pruned weight after each step."""

    def __init__(self, network: nn.Module, masks: dict[str, Tensor]) -> None:
        self.keep, self.network, self.masks = MaskKeeper(network, masks), network, masks
        self.largest: list[float] = []

    def pruned(self) -> Iterator[Tensor]:
        for name, weight in prunable(self.network).items():
            yield weight.detach()[~self.masks[name]].abs()

    def __call__(self) -> None:
        self.keep()
        self.largest.append(max(float(part.max()) for part in self.pruned()))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pruned_weights_are_zero_after_every_step_of_fine_tuning(optimizer: str) -> None:
    model = tiny_model()
    masks = halves(model.network)
    apply_masks(model.network, masks)
    watch = Watch(model.network, masks)
    optim = Optim(OptimConfig(optimizer, 0.05, 0.01))
    group = Group(tuple(model.network.parameters()), optim)
    run_stage(model, Stage("finetune", 2, (group,), renew=watch), TinyData(), MemoryLog())
    assert watch.largest == [0.0] * (2 * 3 * 2)
