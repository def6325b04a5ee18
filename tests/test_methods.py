"""The contract of every method in the registry, and what sets their families apart."""

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import cli
import pytest
import torch
from conftest import TinyData, TinyView, tiny_model
from searches import (
    BOTH,
    VIEWS,
    Found,
    Watch,
    dense_state,
    find,
    flat,
    known,
    make_search,
    nonzero,
)

from pruning import METHODS, Method
from pruning.masks import Masks, Scores, all_kept, kept_count, prunable
from pruning.method import Search, one_shot
from pruning.scores import learn_masks
from utils.errors import NumericError

TOTAL = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 6
ALL = pytest.mark.parametrize("name", METHODS)
SEEN = pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
LEARNED = [n for n, m in METHODS.items() if m.learns]
FINETUNED = [n for n, m in METHODS.items() if m.finetunes and not m.trains]
REWOUND = [n for n in FINETUNED if n not in LEARNED]


def expected_count(found: Found) -> int:
    return TOTAL - int((1 - found.search.density) * TOTAL)


@ALL
@pytest.mark.parametrize("density", [0.9, 0.5, 0.1, 0.02])
def test_the_count_is_exact(name: str, density: float) -> None:
    found = known(name, density=density)
    assert kept_count(found.masks) == expected_count(found)


@ALL
@SEEN
def test_every_way_of_seeing_the_data_gives_the_exact_count(
    name: str, views: tuple[str, ...]
) -> None:
    found = known(name, views=views)
    assert kept_count(found.masks) == expected_count(found)


@ALL
def test_masks_are_bool_in_the_shapes_of_the_layers(name: str) -> None:
    found = known(name)
    weights = prunable(found.model.network)
    assert {n: (m.shape, m.dtype) for n, m in found.masks.items()} == {
        n: (weight.shape, torch.bool) for n, weight in weights.items()
    }


@ALL
@SEEN
def test_the_same_seed_gives_the_same_masks(name: str, views: tuple[str, ...]) -> None:
    one, other = known(name, views=views), find(name, views=views)
    assert torch.equal(flat(one.masks), flat(other.masks))


@ALL
def test_the_global_random_state_does_not_matter(name: str) -> None:
    one = find(name, model=tiny_model(kind="random"), views=BOTH)
    torch.manual_seed(99)
    other = find(name, model=tiny_model(kind="random"), views=BOTH)
    assert torch.equal(flat(one.masks), flat(other.masks))


@pytest.mark.parametrize("name", ["random", "snip", "omp", "lth", "vpns", "hydra", "bip"])
def test_three_seeds_give_three_masks(name: str) -> None:
    masks = [flat(find(name, seed=seed).masks) for seed in (7, 8, 9)]
    assert not any(torch.equal(*pair) for pair in combinations(masks, 2))


def wild_network(bad: float) -> Search:
    """A search whose network has one weight that is not finite."""
    model = tiny_model()
    with torch.no_grad():
        model.network[3].weight[1, 2, 0, 0] = bad
    return make_search(model, density=0.5)


def wild_images(bad: float) -> Search:
    """A search whose first training images have a pixel that is not finite."""
    view = TinyView("clean")
    view.x[:, 0, 1, 1] = bad
    return make_search(data=TinyData(clean=view, prompted=view), density=0.5)


DECIDING = sorted(set(METHODS) - {"random", "rigl", "dense"})
NOT_FINITE = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


@NOT_FINITE
@pytest.mark.parametrize("name", DECIDING)
def test_a_weight_that_is_not_finite_decides_no_mask(name: str, bad: float) -> None:
    with pytest.raises(NumericError):
        METHODS[name].find_masks(wild_network(bad))


@NOT_FINITE
@pytest.mark.parametrize("name", [name for name in DECIDING if name != "synflow"])
def test_an_image_that_is_not_finite_decides_no_mask(name: str, bad: float) -> None:
    with pytest.raises(NumericError):
        METHODS[name].find_masks(wild_images(bad))


@ALL
@SEEN
def test_pruned_weights_are_zero_in_the_model_left_behind(
    name: str, views: tuple[str, ...]
) -> None:
    found = known(name, views=views)
    assert torch.equal(nonzero(found.model.network), flat(found.masks))


@pytest.mark.parametrize("name", FINETUNED)
@SEEN
def test_kept_weights_are_the_pretrained_ones(name: str, views: tuple[str, ...]) -> None:
    found, before = known(name, views=views), dense_state()
    for name, mask in found.masks.items():
        weight = found.model.network.get_parameter(name)
        assert torch.equal(weight[mask], before[f"network.{name}"][mask])


@pytest.mark.parametrize("name", FINETUNED)
@pytest.mark.parametrize("key", ["3.bias", "7.bias", "1.weight", "1.bias"])
def test_biases_and_affine_parameters_are_the_pretrained_ones(name: str, key: str) -> None:
    found = known(name, views=BOTH)
    assert torch.equal(found.model.network.state_dict()[key], dense_state()[f"network.{key}"])


@pytest.mark.parametrize("name", REWOUND)
@SEEN
def test_statistics_of_norms_are_the_pretrained_ones(name: str, views: tuple[str, ...]) -> None:
    after, before = known(name, views=views).model.state_dict(), dense_state()
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(after[f"network.1.{key}"], before[f"network.1.{key}"])


@pytest.mark.parametrize("name", LEARNED)
def test_learned_searches_move_the_statistics_of_norms(name: str) -> None:
    after, before = known(name).model.state_dict(), dense_state()
    for key in ("running_mean", "running_var"):
        assert not torch.equal(after[f"network.1.{key}"], before[f"network.1.{key}"])


@ALL
@pytest.mark.parametrize("views", [VIEWS["clean"], VIEWS["repeated"]])
def test_no_method_moves_a_prompt_that_it_is_not_shown(name: str, views: tuple[str, ...]) -> None:
    assert not known(name, views=views).model.prompt.program.any()


@ALL
def test_the_prompt_moves_where_the_search_trains_with_it(name: str) -> None:
    found = known(name, views=BOTH)
    assert bool(found.model.prompt.program.any()) == bool(found.log.rows)


@ALL
@SEEN
def test_no_epochs_change_nothing_but_the_mask(name: str, views: tuple[str, ...]) -> None:
    found, expected = known(name, views=views, epochs=0), dense_state()
    for name, mask in found.masks.items():
        expected[f"network.{name}"] *= mask
    after = found.model.state_dict()
    assert all(torch.equal(after[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", REWOUND)
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was_found(name: str, training: bool) -> None:
    model = tiny_model().train(training)
    assert find(name, model=model).model.training == training


@ALL
def test_requires_grad_is_left_as_it_was_found(name: str) -> None:
    model = tiny_model()
    model.network[1].weight.requires_grad_(False)
    found = find(name, model=model, views=BOTH)
    frozen = [n for n, p in found.model.named_parameters() if not p.requires_grad]
    assert frozen == ["network.1.weight"]


@ALL
@SEEN
def test_no_gradient_is_left(name: str, views: tuple[str, ...]) -> None:
    found = known(name, views=views)
    assert all(p.grad is None for p in found.model.parameters())


@ALL
@SEEN
@pytest.mark.parametrize("epochs", [0, 1])
def test_training_costs_the_passes_that_the_plan_tells(
    name: str, views: tuple[str, ...], epochs: int
) -> None:
    found = known(name, views=views, epochs=epochs)
    planned = METHODS[name].search_passes(epochs, len(views), 1.0, found.search.density)
    assert found.log.passes == planned if found.log.rows else planned == 0


def test_snip_costs_one_batch() -> None:
    assert known("snip").log.passes == pytest.approx(8 / 24)


def test_grasp_costs_three_passes_over_its_set() -> None:
    assert known("grasp").log.passes == pytest.approx(3 * 24 / 24)


@pytest.mark.parametrize(("name", "passes"), [("omp", 2), ("lth", 2 * 6), ("hydra", 2)])
def test_baselines_cost_the_phases_of_the_papers_runs(name: str, passes: float) -> None:
    """OMP a dense phase; LTH also five rounds, 0.8 to 0.32768; HYDRA its search."""
    assert known(name, epochs=2).log.passes == passes


@SEEN
def test_bip_costs_two_passes_an_epoch(views: tuple[str, ...]) -> None:
    assert find("bip", views=views, epochs=3).log.passes == 6


@SEEN
def test_bip_holds_a_mask_of_the_exact_count_at_every_step(views: tuple[str, ...]) -> None:
    model = tiny_model()
    log = Watch(model.network)
    found = find("bip", model=model, log=log, views=views, epochs=2)
    counts = [int(pattern.sum()) for pattern in log.seen["search"]]
    assert len(counts) == 2 * (2 * 3 + 1) and set(counts) == {expected_count(found)}


@SEEN
def test_lth_holds_the_mask_of_a_round_at_every_step(views: tuple[str, ...]) -> None:
    model = tiny_model()
    log = Watch(model.network)
    find("lth", model=model, log=log, views=views, epochs=2)
    densities = {name: float(name.removeprefix("round-")) for name in list(log.seen)[1:]}
    assert len(densities) == 5
    for name, density in densities.items():
        first, *others = log.seen[name]
        assert int(first.sum()) == TOTAL - int((1 - density) * TOTAL)
        assert others and all(torch.equal(pattern, first) for pattern in others)


@SEEN
def test_the_dense_phase_has_no_mask(views: tuple[str, ...]) -> None:
    model = tiny_model()
    log = Watch(model.network)
    find("omp", model=model, log=log, views=views)
    assert len(log.seen["dense"]) == 3 * len(views) + 1
    assert all(pattern.all() for pattern in log.seen["dense"])


def zeros_at_mappings(name: str) -> list[float]:
    """The share of nonzero weights whenever the labels are mapped."""
    model, seen = tiny_model(), []
    find(name, model=model, remap=lambda: seen.append(nonzero(model.network).float().mean().item()))
    return [round(share, 2) for share in seen]


@pytest.mark.parametrize("name", ["random", "snip", "grasp", "omp"])
def test_one_shot_methods_map_the_labels_once_after_masking(name: str) -> None:
    assert zeros_at_mappings(name) == [0.3]


@pytest.mark.parametrize("name", LEARNED)
def test_learned_searches_map_the_labels_once_behind_the_first_mask(name: str) -> None:
    assert zeros_at_mappings(name) == [0.3]


def test_lth_maps_the_labels_anew_in_every_round() -> None:
    assert zeros_at_mappings("lth") == [0.8, 0.64, 0.51, 0.41, 0.33, 0.3]


def test_dense_keeps_every_weight_and_trains_nothing() -> None:
    found = find("dense", epochs=3)
    assert flat(found.masks).all() and not found.log.rows


def test_hydra_and_vpns_are_the_same_call() -> None:
    assert METHODS["hydra"].find_masks is METHODS["vpns"].find_masks is learn_masks


def test_hydra_is_vpns_without_the_prompt() -> None:
    assert METHODS["vpns"].prune_mode == "score+vp_weight+vp"
    assert METHODS["hydra"].prune_mode == "score_weight"


def test_only_bip_goes_without_fine_tuning() -> None:
    assert [name for name, method in METHODS.items() if not method.finetunes] == ["bip"]


def test_methods_prompt_only_where_their_row_says_so() -> None:
    prompting = [name for name, m in METHODS.items() if "vp" in m.prune_mode]
    assert prompting == ["vpns"]


def test_random_masks_of_two_densities_are_drawn_independently() -> None:
    sparse, denser = known("random", density=0.3), known("random", density=0.5)
    assert (flat(sparse.masks) & ~flat(denser.masks)).any()


@pytest.mark.parametrize("name", ["snip", "grasp"])
@pytest.mark.parametrize(("views", "source"), [(BOTH, "prompted"), (VIEWS["clean"], "clean")])
def test_scores_come_from_the_first_view_of_the_search(
    name: str, views: tuple[str, ...], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, batches = [], TinyView.batches

    def noted(view: TinyView, *key: object, start: int = 0) -> Iterator:
        seen.append((view.name, *key))
        return batches(view, *key, start=start)

    monkeypatch.setattr(TinyView, "batches", noted)
    find(name, views=views)
    assert seen == [(source, 7, 0.3, name)]


def magnitude(search: Search) -> Scores:
    return {name: weight.abs() for name, weight in prunable(search.model.network).items()}


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "magnitude", Method(one_shot(magnitude)))


@pytest.mark.usefixtures("outside")
def test_a_method_from_outside_runs_from_the_command_line(tmp_path: Path) -> None:
    done = cli.call(
        "--prune_method", "magnitude", "--density_list", "0.5", "--epochs", 1,
        "--network", "resnet20", "--weights", "none", "--dataset", "digits",
        "--train_images", 100, "--device", "cpu", "--workers", 0, "--save_dir", tmp_path,
    )  # fmt: skip
    (row,) = done.result["rows"]
    assert done.result["method"] == "magnitude"
    assert row["kept"] == row["prunable"] - int(0.5 * row["prunable"])


@pytest.mark.usefixtures("outside")
def test_a_method_from_outside_meets_the_contract() -> None:
    found = find("magnitude")
    kept = flat(found.masks)
    size = flat({n: dense_state()[f"network.{n}"].abs() for n in found.masks})
    assert kept_count(found.masks) == expected_count(found)
    assert size[kept].min() >= size[~kept].max()


@pytest.mark.parametrize("exact", [True, False])
def test_only_a_method_without_an_exact_count_may_miss_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    def first_layer_alone(search: Search) -> Masks:
        masks = {n: torch.zeros_like(m) for n, m in all_kept(search.model.network).items()}
        masks["conv1.weight"].fill_(True)
        return search.use(masks)

    monkeypatch.setitem(METHODS, "first", Method(first_layer_alone, exact=exact))
    done = cli.run(tmp_path, "--prune_method", "first", "--density_list", "0.1", "--epochs", 0)
    if exact:
        assert done.code == 1 and "keeps 432 of 268336 weights instead of 26834" in done.error
        return
    (row,) = done.result["rows"]
    assert (row["density"], row["kept"]) == (0.1, 3 * 16 * 9)
    assert row["real_density"] == pytest.approx(row["kept"] / row["prunable"], abs=1e-9)
    measured = cli.call("--evaluate", done.folder / "d0.1/model.safetensors", "--device", "cpu")
    assert (measured.result["kept"], measured.result["clean"]) == (row["kept"], row["clean"])


def test_a_name_that_is_in_no_registry_is_refused() -> None:
    done = cli.call("--prune_method", "magnitude")
    assert done.code == 2 and "random" in done.error
