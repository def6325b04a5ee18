"""Each method's scores against formulas worked out here, on networks of a few weights."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import SIZE, TinyData, TinyView, tiny_model
from searches import (
    BOTH,
    VIEWS,
    FixedView,
    Watch,
    dense_state,
    find,
    fixed_data,
    flat,
    make_search,
    score_gradient,
    small_model,
    weights,
)
from torch import Tensor, nn
from torch.func import functional_call

from pruning import grasp
from pruning.bip import INVERSE_GAMMA, LOWER, UPPER, BilevelScores
from pruning.grasp import balanced_set, halves_in_batches, hessian_gradient
from pruning.lth import alive_magnitudes, rounds
from pruning.masks import Masks, keep_top, kept_count, layer_densities
from pruning.method import Trained
from pruning.random import scores as random_scores
from pruning.snip import scores as snip_scores
from pruning.synflow import path_scores, positive_copy, synflow_masks
from pruning.vpns import VPNS
from utils.optim import Optim, OptimConfig

LABEL_MAP = [4, 0, 2]  # three target classes of six source classes


def linear_model(label_map: list[int] | None = LABEL_MAP) -> nn.Module:
    torch.manual_seed(0)
    return small_model(nn.Sequential(nn.Flatten(), nn.Linear(3, 6)), label_map)


def top(scores: Tensor, density: float) -> Tensor:
    """The kept places, by sorting."""
    pruned = int((1 - density) * len(scores))
    keep = torch.ones(len(scores), dtype=torch.bool)
    keep[scores.argsort(stable=True)[:pruned]] = False
    return keep


# SNIP


def test_snip_of_a_linear_softmax_model_is_the_closed_form() -> None:
    """dL/dW[q(c)] = mean over the batch of (p_c - y_c) x; rows without a target get none."""
    model, data = linear_model(), fixed_data(8, classes=3)
    x, y = data.clean.x.flatten(1), data.clean.y
    head = model.network[1]
    logits = x @ head.weight.detach().T + head.bias.detach()
    p = logits[:, LABEL_MAP].exp()
    p = p / p.sum(1, keepdim=True)
    errors = p - torch.eye(3, dtype=torch.float64)[y]
    expected = torch.zeros(6, 3, dtype=torch.float64)
    expected[LABEL_MAP] = (head.weight.detach()[LABEL_MAP] * (errors.T @ x) / len(y)).abs()
    found = snip_scores(make_search(model, data=data))
    torch.testing.assert_close(found["1.weight"], expected)


def test_snip_takes_the_loss_on_the_mapped_logits() -> None:
    found = snip_scores(make_search(linear_model(), data=fixed_data(8, classes=3)))["1.weight"]
    assert not found[[1, 3, 5]].any() and found[LABEL_MAP].all()


def test_snip_is_the_change_of_the_loss_with_the_mask() -> None:
    """|dL/dc| at c = 1, by central differences of the loss for a mask with one other entry."""
    model = tiny_model().double().eval()
    data = fixed_data(8, side=SIZE)
    found = snip_scores(make_search(model, data=data))
    x, y = data.clean.x, data.clean.y
    for name, place in (("0.weight", 5), ("3.weight", 100), ("7.weight", 41)):
        weight = model.network.get_parameter(name)
        value = weight.data.view(-1)[place].clone()
        losses = []
        for mask in (1 + 1e-6, 1 - 1e-6):
            weight.data.view(-1)[place] = mask * value
            losses.append(F.cross_entropy(model(x), y).item())
        weight.data.view(-1)[place] = value
        slope = abs(losses[0] - losses[1]) / 2e-6
        assert found[name].flatten()[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-10)


def test_snip_looks_at_one_batch_only() -> None:
    data = fixed_data(24, classes=3)
    scores = snip_scores(make_search(linear_model(), data=data))
    data.clean.x[8:] += 5
    again = snip_scores(make_search(linear_model(), data=data))
    assert torch.equal(scores["1.weight"], again["1.weight"])


def test_snip_sees_norms_in_eval_mode() -> None:
    model = tiny_model().train()
    expected = snip_scores(make_search(tiny_model().eval()))
    found = snip_scores(make_search(model))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# GraSP


class Curved:
    """A tanh network of 26 weights, and losses on it as functions of all its weights."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)
        )
        self.model = small_model(self.network, None)
        self.layers = [self.network[1], self.network[3]]
        self.weights = [layer.weight for layer in self.layers]
        self.start = torch.cat([weight.detach().flatten() for weight in self.weights])
        self.data = fixed_data(10, batch_size=3, classes=3)

    def logits(self, values: Tensor, x: Tensor) -> Tensor:
        first, second = values.split([15, 15])
        changed = {"1.weight": first.view(5, 3), "3.weight": second.view(3, 5)}
        return functional_call(self.network, changed, (x,))

    def by_class(self) -> tuple[Tensor, Tensor]:
        order = self.data.clean.y.argsort(stable=True)
        return self.data.clean.x[order], self.data.clean.y[order]

    def half_loss(self, values: Tensor, half: int) -> Tensor:
        """The mean over one half of the set that is ordered by class, logits over 200."""
        x, y = self.by_class()
        rows = slice(0, 5) if half == 0 else slice(5, 10)
        return F.cross_entropy(self.logits(values, x[rows]) / 200, y[rows])

    def sum_of_halves(self, values: Tensor) -> Tensor:
        return self.half_loss(values, 0) + self.half_loss(values, 1)

    def product(self) -> Tensor:
        """H g with the explicit Hessian of each half: (H1 + H2) (g1 + g2)."""
        jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
        loss = [lambda v, half=half: self.half_loss(v, half) for half in (0, 1)]
        gradient = jacobian(loss[0], self.start) + jacobian(loss[1], self.start)
        return (hessian(loss[0], self.start) + hessian(loss[1], self.start)) @ gradient


def test_hessian_gradient_products_match_the_explicit_hessian() -> None:
    curved = Curved()
    x, y = curved.by_class()
    halves = [
        lambda rows=rows: F.cross_entropy(curved.network(x[rows]) / 200, y[rows])
        for rows in (slice(0, 5), slice(5, 10))
    ]
    found = torch.cat([part.flatten() for part in hessian_gradient(halves, curved.weights)])
    torch.testing.assert_close(found, curved.product(), rtol=1e-9, atol=0)


def test_grasp_scores_are_the_weight_times_the_product() -> None:
    """Ordered by class, cut into two halves, temperature 200; batches of three change nothing."""
    curved = Curved()
    found = flat(grasp.scores(make_search(curved.model, data=curved.data)))
    torch.testing.assert_close(found, curved.start * curved.product(), rtol=1e-9, atol=0)


def test_grasp_removes_the_weights_whose_removal_raises_the_gradient_norm_most() -> None:
    """S = -w H g is half the slope of |g|^2 towards the removal of a weight; the highest S go."""
    curved = Curved()

    def norm(values: Tensor) -> float:
        values = values.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(curved.sum_of_halves(values), values)
        return gradient.square().sum().item()

    slopes = []
    for place, value in enumerate(curved.start):
        step = torch.zeros_like(curved.start)
        step[place] = 1e-5 * value
        slopes.append((norm(curved.start - step) - norm(curved.start + step)) / 2e-5)
    found = find("grasp", model=curved.model, data=curved.data, density=0.4)
    assert torch.equal(flat(found.masks), top(-torch.tensor(slopes), 0.4))


def test_grasp_keeps_its_own_mask_and_not_only_its_layer_densities() -> None:
    found = find("grasp")
    scores = flat(grasp.scores(make_search()))
    assert scores[flat(found.masks)].min() >= scores[~flat(found.masks)].max()


def test_grasp_takes_25_images_of_each_class_in_the_order_of_the_view() -> None:
    data = fixed_data(200, classes=3)
    images, labels = balanced_set(make_search(linear_model(), data=data))
    assert labels.tolist() == [0] * 25 + [1] * 25 + [2] * 25
    for label in range(3):
        mine = data.clean.x[data.clean.y == label][:25]
        assert torch.equal(images[labels == label], mine)


@pytest.mark.parametrize(("classes", "quota"), [(10, 25), (37, 13), (47, 10), (102, 5), (600, 1)])
def test_grasp_takes_fewer_of_many_classes(classes: int, quota: int) -> None:
    torch.manual_seed(0)
    model = small_model(nn.Sequential(nn.Flatten(), nn.Linear(3, classes)), None)
    x = torch.rand(30 * classes, 3, 1, 1, dtype=torch.float64)
    y = torch.arange(classes).repeat(30)
    view = FixedView(x, y, 100)
    _, labels = balanced_set(make_search(model, data=TinyData(clean=view)))
    assert Counter(labels.tolist()) == dict.fromkeys(range(classes), quota)


def test_grasp_takes_what_there_is_of_a_rare_class() -> None:
    data = fixed_data(120, classes=3)
    data.clean.y[data.clean.y == 1] = 0
    data.clean.y[7] = 1
    _, labels = balanced_set(make_search(linear_model(), data=data))
    assert Counter(labels.tolist()) == {0: 25, 1: 1, 2: 25}


def test_grasp_reads_no_further_than_it_needs() -> None:
    class Counting(FixedView):
        read = 0

        def whole(self):
            return self

        def batches(self, *key: object, start: int = 0):
            for batch in super().batches(*key, start=start):
                self.read += 1
                yield batch

    plain = fixed_data(1000, classes=3).clean
    view = Counting(plain.x, plain.y, 8)
    balanced_set(make_search(linear_model(), data=TinyData(clean=view)))
    complete = max((plain.y == label).nonzero()[24].item() for label in range(3))
    assert view.read == complete // 8 + 1


def test_images_of_the_set_survive_a_view_that_uses_its_memory_again() -> None:
    class Reusing(FixedView):
        def whole(self):
            return self

        def batches(self, *key: object, start: int = 0):
            memory = torch.empty(self._batch, 3, 1, 1, dtype=torch.float64)
            for x, y in super().batches(*key, start=start):
                yield memory[: len(y)].copy_(x), y

    data = fixed_data(40, classes=3)
    view = Reusing(data.clean.x, data.clean.y, 8)
    expected, _ = balanced_set(make_search(linear_model(), data=data))
    images, _ = balanced_set(make_search(linear_model(), data=TinyData(clean=view)))
    assert torch.equal(images, expected)


@pytest.mark.parametrize("count", [1, 2, 7, 10])
def test_both_halves_weigh_the_same_in_batches_of_any_size(count: int) -> None:
    labels = torch.arange(count)
    parts = list(halves_in_batches(labels.view(-1, 1), labels, 2))
    halves = {False: 0.0, True: 0.0}
    for x, y, share in parts:
        assert torch.equal(x[:, 0], y) and len(y) <= 2
        halves[bool(y[0] >= count // 2)] += share
    assert halves == pytest.approx({False: float(count > 1), True: 1.0})
    assert torch.equal(torch.cat([y for _, y, _ in parts]), labels)


# SynFlow


def chain(*sizes: int, activation: type[nn.Module] | None = None) -> nn.Sequential:
    """Linear layers without bias behind a flattened pixel."""
    torch.manual_seed(2)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs, bias=False)] + ([activation()] if activation else [])
    return nn.Sequential(*layers)


def path_products(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """For every weight, the sum over the paths through it of the product of their |weights|."""
    scores = torch.zeros_like(first), torch.zeros_like(second)
    for k in range(second.shape[0]):
        for j in range(first.shape[0]):
            for i in range(first.shape[1]):
                product = abs(first[j, i].item() * second[k, j].item())
                scores[0][j, i] += product
                scores[1][k, j] += product
    return scores


ONES = torch.ones(1, 3, 1, 1, dtype=torch.float64)


def test_synflow_scores_are_sums_of_path_products() -> None:
    network = chain(3, 4, 2)
    found = path_scores(positive_copy(network), ONES)
    first, second = path_products(network[1].weight.double(), network[2].weight.double())
    torch.testing.assert_close(found["1.weight"], first)
    torch.testing.assert_close(found["2.weight"], second)


def test_synflow_conserves_the_flow_through_every_layer() -> None:
    scores = path_scores(positive_copy(chain(3, 5, 7, 4, 2)), ONES)
    sums = torch.stack([score.sum() for score in scores.values()])
    torch.testing.assert_close(sums, sums[0].expand(4))


def test_synflow_conserves_the_flow_through_every_hidden_unit() -> None:
    scores = path_scores(positive_copy(chain(3, 5, 2, activation=nn.ReLU)), ONES)
    torch.testing.assert_close(scores["1.weight"].sum(1), scores["3.weight"].sum(0))


def by_rounds(first: Tensor, second: Tensor, density: float, count: int) -> Tensor:
    """Rounds of pruning by path products, with sorting; both layers' masks as one."""
    total = first.numel() + second.numel()
    alive = torch.ones(total, dtype=torch.bool)
    for step in range(1, count + 1):
        masks = alive.split([first.numel(), second.numel()])
        kept = [w * m.view_as(w) for w, m in zip((first, second), masks, strict=True)]
        scores = torch.cat([score.flatten() for score in path_products(*kept)])
        scores[~alive] = -1
        alive = top(scores, density ** (step / count))
    return alive


def test_synflow_prunes_in_a_hundred_rounds() -> None:
    network = chain(3, 6, 4)
    first, second = (network[place].weight.detach().double() for place in (1, 2))
    hundred = by_rounds(first, second, 0.2, 100)
    assert not torch.equal(hundred, by_rounds(first, second, 0.2, 1))
    assert torch.equal(flat(synflow_masks(network, 0.2, 1)), hundred)


def test_synflow_lowers_the_density_exponentially() -> None:
    densities = []

    def noted(scores: dict[str, Tensor], density: float) -> Masks:
        densities.append(density)
        return keep_top(scores, density)

    synflow_masks(chain(3, 6, 4), 0.07, 1, noted)
    assert densities == pytest.approx([0.07 ** (step / 100) for step in range(1, 101)])
    assert densities[-1] == 0.07


def test_synflow_does_not_empty_a_layer_that_one_round_would() -> None:
    network = chain(48, 20, 1)  # the layers' scores have equal sums: the larger one's are lower
    one_round = path_scores(positive_copy(network), torch.ones(1, 3, 4, 4, dtype=torch.float64))
    kept = top(torch.cat([score.flatten() for score in one_round.values()]), 0.015)
    assert not kept[:960].any()
    masks = synflow_masks(network, 0.015, 4)
    assert all(mask.any() for mask in masks.values())


def test_synflow_never_brings_a_pruned_weight_back() -> None:
    alive: list[Tensor] = []

    def noted(scores: dict[str, Tensor], density: float) -> Masks:
        masks = keep_top(scores, density)
        alive.append(flat(masks))
        return masks

    synflow_masks(chain(3, 6, 4), 0.05, 1, noted)
    assert len(alive) == 100
    assert not any((after & ~before).any() for before, after in zip(alive, alive[1:], strict=False))


def test_synflow_works_where_single_precision_overflows() -> None:
    network = chain(3, *[64] * 30, 2)
    with torch.no_grad():
        for layer in network[1:]:
            layer.weight.fill_(1.0).add_(torch.rand_like(layer.weight))
        assert not torch.isfinite(network(ONES.float())).all()  # 96^30
    assert kept_count(synflow_masks(network, 0.5, 1)) == math.ceil(0.5 * (192 + 29 * 4096 + 128))


def test_synflow_is_not_stopped_by_saturated_activations() -> None:
    network = chain(3, 4, 2, activation=nn.ReLU6)
    with torch.no_grad():
        network[1].weight.fill_(50.0)
    scores = path_scores(positive_copy(network), ONES)
    assert all((score > 0).all() for score in scores.values())


def test_synflow_replaces_relu6_inside_blocks_and_in_the_copy_only() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(nn.ReLU6())))
    kinds = [type(module) for module in positive_copy(network).modules()]
    assert nn.ReLU6 not in kinds and nn.ReLU in kinds
    assert isinstance(network[0][1][0], nn.ReLU6)


def test_synflow_leaves_the_network_as_it_is() -> None:
    model = tiny_model().train()
    synflow_masks(model.network, 0.3, SIZE)
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in dense_state().items())
    assert model.network.training and all(p.dtype == torch.float32 for p in model.parameters())


def test_synflow_does_not_look_at_the_images() -> None:
    one = find("synflow", data=TinyData(clean=TinyView("clean")))
    other = find("synflow", data=TinyData(clean=TinyView("other")))
    assert torch.equal(flat(one.masks), flat(other.masks))


def test_synflow_ignores_signs() -> None:
    network = chain(3, 6, 4)
    masks = flat(synflow_masks(network, 0.3, 1))
    with torch.no_grad():
        network[1].weight.abs_()
        network[2].weight.neg_()
    assert torch.equal(flat(synflow_masks(network, 0.3, 1)), masks)


# BiP


GAMMA = 1 / INVERSE_GAMMA


class Linear:
    """A loss c . z of the masked weight z = m * theta, for which BiP's gradient is exact.

    theta(m) = -m c / gamma solves the lower problem min c . (m theta) + gamma / 2 |theta|^2, so
    that the upper loss is c . (m theta(m)), a function of the mask alone.
    """

    def __init__(self) -> None:
        torch.manual_seed(4)
        self.network = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
        self.learned = BilevelScores(self.network, 0.5)
        self.c = torch.randn(12, dtype=torch.float64) * 1e3
        self.mask = self.learned.keep().double()
        with torch.no_grad():
            self.learned.theta.copy_(self.theta(self.mask))
        self.network[0].weight.grad = self.c.view(3, 4).clone()

    def theta(self, mask: Tensor) -> Tensor:
        return -mask * self.c / GAMMA

    def upper(self, mask: Tensor) -> float:
        return (self.c * mask * self.theta(mask)).sum().item()

    def slope(self, place: int) -> float:
        step = torch.zeros(12, dtype=torch.float64)
        step[place] = 1e-4
        return (self.upper(self.mask + step) - self.upper(self.mask - step)) / 2e-4


def test_bips_implicit_gradient_is_exact_for_a_loss_that_is_linear_in_the_masked_weight() -> None:
    linear = Linear()
    linear.learned.gradients(UPPER)
    slopes = torch.tensor([linear.slope(place) for place in range(12)], dtype=torch.float64)
    expected = slopes * linear.learned.flat_scores.detach().sign()
    assert (slopes != 0).sum() == 6
    torch.testing.assert_close(score_gradient(linear.learned), expected, rtol=1e-6, atol=1e-9)


def test_bip_without_the_implicit_term_would_be_half_of_it() -> None:
    """So that the test above can see the term: straight-through alone is theta * c = slope / 2."""
    linear = Linear()
    straight = linear.learned.theta.detach() * linear.c
    slopes = torch.tensor([linear.slope(place) for place in range(12)], dtype=torch.float64)
    torch.testing.assert_close(straight, slopes / 2, rtol=1e-6, atol=1e-9)


def test_bips_lower_gradient_is_the_gradient_through_the_mask() -> None:
    linear = Linear()
    linear.learned.gradients(LOWER)
    torch.testing.assert_close(linear.learned.theta.grad, linear.c * linear.mask)


def test_bips_scores_of_pruned_places_get_the_straight_through_gradient() -> None:
    linear = Linear()
    with torch.no_grad():
        linear.learned.theta.copy_(torch.arange(1.0, 13.0))
    linear.learned.gradients(UPPER)
    pruned = linear.mask == 0
    expected = linear.c * torch.arange(1.0, 13.0) * linear.learned.flat_scores.detach().sign()
    torch.testing.assert_close(score_gradient(linear.learned)[pruned], expected[pruned])


def bip_steps(monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[dict[str, Tensor]]:
    """Theta, scores, mask, biases and prompt at the start and after every half-step."""
    model, seen = tiny_model(), []
    renew = BilevelScores.renew

    def noted(learned: BilevelScores) -> None:
        renew(learned)
        seen.append({
            "theta": learned.dense.clone(), "scores": learned.flat_scores.detach().clone(),
            "mask": learned.keep().clone(), "bias": model.network[3].bias.detach().clone(),
            "norm": model.network[1].weight.detach().clone(),
            "prompt": model.prompt.program.detach().clone(),
            "weights": flat(weights(model.network)),
        })  # fmt: skip

    monkeypatch.setattr(BilevelScores, "renew", noted)
    find("bip", model=model, **changes)
    return seen


def moved(seen: list[dict[str, Tensor]], key: str) -> list[bool]:
    pairs = zip(seen, seen[1:], strict=False)
    return [not torch.equal(before[key], after[key]) for before, after in pairs]


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_bip_moves_weights_and_scores_by_turns(
    views: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = bip_steps(monkeypatch, views=views)
    assert moved(seen, "theta") == moved(seen, "bias") == moved(seen, "norm") == [True, False] * 3
    assert moved(seen, "scores") == [False, True] * 3


def test_bips_prompt_moves_with_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert moved(bip_steps(monkeypatch, views=BOTH), "prompt") == [False, True] * 3


def test_bips_weights_are_theta_under_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    for step in bip_steps(monkeypatch):
        assert torch.equal(step["weights"], step["theta"] * step["mask"])


def test_bips_pruned_weights_move_by_weight_decay_only(monkeypatch: pytest.MonkeyPatch) -> None:
    decay = Optim(OptimConfig("sgd", 0.1, 1e-2))
    start, after, *_ = bip_steps(monkeypatch, weight_optim=decay)
    pruned = ~start["mask"]
    torch.testing.assert_close(after["theta"][pruned], start["theta"][pruned] * (1 - 0.1 * 1e-2))
    assert (after["theta"] != start["theta"] * (1 - 0.1 * 1e-2))[~pruned].float().mean() > 0.5


def test_bips_lower_batches_are_not_its_upper_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, batches = [], TinyView.batches

    def noted(view: TinyView, *key: object, start: int = 0):
        keys.append(key)
        return batches(view, *key, start=start)

    monkeypatch.setattr(TinyView, "batches", noted)
    find("bip", epochs=1)
    lower, upper, _ = keys
    assert lower == (*upper, "other")


# random, OMP, LTH, HYDRA


def test_random_scores_are_uniform() -> None:
    model = small_model(nn.Sequential(nn.Linear(100, 300)), None)
    values = random_scores(make_search(model))["0.weight"].flatten()
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, 10, 0, 1)
    assert counts == pytest.approx(3000, abs=220)  # four standard deviations


def test_random_masks_have_about_the_same_density_in_every_layer() -> None:
    network = nn.Sequential(*[nn.Linear(100, 100) for _ in range(3)])
    masks = find("random", model=small_model(network, None), density=0.1).masks
    assert all(d == pytest.approx(0.1, abs=0.012) for d in layer_densities(masks).values())


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_omp_keeps_the_largest_weights_of_the_trained_network(views: tuple[str, ...]) -> None:
    model = tiny_model()
    log = Watch(model.network)
    masks = find("omp", model=model, log=log, views=views, epochs=2).masks
    trained = flat({name: log.ends["dense"][name] for name in masks})
    untrained = flat(weights(tiny_model().network))
    assert torch.equal(flat(masks), top(trained.abs(), 0.3))
    assert not torch.equal(flat(masks), top(untrained.abs(), 0.3))


def test_omp_without_training_is_magnitude_pruning_of_the_pretrained_network() -> None:
    masks = find("omp", epochs=0).masks
    assert torch.equal(flat(masks), top(flat(weights(tiny_model().network)).abs(), 0.3))


def test_omp_goes_on_with_the_prompt_of_the_dense_phase() -> None:
    model = tiny_model()
    log = Watch(model.network)
    find("omp", model=model, log=log, views=BOTH)
    assert log.ends["dense"]["program"].any()
    assert torch.equal(model.prompt.program, log.ends["dense"]["program"])


@pytest.mark.parametrize(
    ("start", "end", "steps"),
    [
        (1.0, 0.5, [0.8, 0.64, 0.512, 0.5]),
        (1.0, 0.8, [0.8]),
        (1.0, 0.64, [0.8, 0.64]),
        (1.0, 0.9, [0.9]),
        (1.0, 1.0, [1.0]),
        (0.5, 0.3, [0.4, 0.32, 0.3]),
        (0.3, 0.25, [0.25]),
    ],
)
def test_rounds_take_a_fifth_and_land_on_the_density(
    start: float, end: float, steps: list[float]
) -> None:
    found = rounds(start, end)
    assert found == pytest.approx(steps) and found[-1] == end


def test_thirteen_rounds_lead_to_the_papers_last_density() -> None:
    assert len(rounds(1.0, 0.055)) == 13


def test_lth_ranks_the_weights_that_its_last_round_trained() -> None:
    model = tiny_model()
    log = Watch(model.network)
    masks = find("lth", model=model, log=log, density=0.6).masks
    assert list(log.ends) == ["dense", "round-0.8", "round-0.64"]
    last = flat({name: log.ends["round-0.64"][name] for name in masks})
    assert torch.equal(flat(masks), top(last.abs(), 0.6))


def test_lths_masks_are_nested() -> None:
    model = tiny_model()
    log = Watch(model.network)
    masks = flat(find("lth", model=model, log=log, density=0.3).masks)
    chain_of_masks = [patterns[0] for patterns in log.seen.values()] + [masks]
    assert len(chain_of_masks) == 7
    for denser, sparser in zip(chain_of_masks, chain_of_masks[1:], strict=False):
        assert not (sparser & ~denser).any() and sparser.sum() < denser.sum()


def test_lths_rounds_all_start_from_the_pretrained_weights() -> None:
    model = tiny_model()
    before, starts = weights(model.network), []
    remap = lambda: starts.append(weights(model.network))  # noqa: E731
    find("lth", model=model, remap=remap, density=0.5)
    assert len(starts) == 4  # three rounds, the end
    for start in starts:
        assert all(torch.equal(start[n], before[n] * (start[n] != 0)) for n in before)


def test_lths_rounds_all_start_with_the_prompt_of_the_dense_phase() -> None:
    model, programs = tiny_model(), []
    remap = lambda: programs.append(model.prompt.program.detach().clone())  # noqa: E731
    find("lth", model=model, remap=remap, views=BOTH, density=0.5)
    assert len(programs) == 4 and programs[0].any()
    assert all(torch.equal(program, programs[0]) for program in programs)


def level_before(density: float = 0.6) -> Trained:
    """A finished level with weights unlike the pre-trained ones."""
    masks = find("random", density=density).masks
    draw = torch.Generator().manual_seed(5)
    values = {name: torch.randn(mask.shape, generator=draw) for name, mask in masks.items()}
    return Trained(density, masks, values)


def test_lth_goes_on_from_the_weights_of_the_level_before() -> None:
    before = level_before()
    masks = find("lth", density=0.5, previous=lambda: before).masks
    alive = flat(before.weights).abs()
    alive[~flat(before.masks)] = -1
    assert torch.equal(flat(masks), top(alive, 0.5))


def test_lth_never_revives_a_weight_however_large() -> None:
    before = level_before()
    for name, mask in before.masks.items():
        before.weights[name][~mask] = 1e6
    masks = find("lth", density=0.3, previous=lambda: before).masks
    assert not (flat(masks) & ~flat(before.masks)).any()


def test_a_later_level_of_lth_starts_with_the_prompt_of_the_dense_phase() -> None:
    first = find("lth", views=BOTH, density=0.6)
    later = find("lth", views=BOTH, density=0.5, previous=level_before)
    assert first.model.prompt.program.any()
    assert torch.equal(first.model.prompt.program, later.model.prompt.program)


def test_the_magnitude_of_a_kept_zero_ranks_above_pruned_weights() -> None:
    values = {"a": torch.tensor([0.0, -2.0, 3.0])}
    masks = {"a": torch.tensor([True, True, False])}
    assert alive_magnitudes(values, values, masks)["a"].tolist() == [0.0, 2.0, -1.0]


def test_hydra_gives_what_vpns_gives_without_the_prompt() -> None:
    one = find("hydra")
    other = make_search(log=type(one.log)())
    other.log.key = one.log.key
    assert torch.equal(flat(one.masks), flat(VPNS.find_masks(other)))
