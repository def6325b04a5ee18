"""The floor under every layer's density: who it holds, what it costs, and layers that are empty."""

from pathlib import Path

import cli
import pytest
import torch
from conftest import tiny_model, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from searches import VIEWS, Watch, find
from test_masks import VALUES, flat, layers
from torch import Tensor

from models import build_network
from models.artifact import masks_of
from program.checkpoints import read_checkpoint
from pruning import METHODS
from pruning.masks import keep_top, kept_count, layer_densities, prunable
from runfolder.stage_log import StageLog
from utils.checkpoint import load_model
from utils.errors import NumericError, UsageError

FINITE = VALUES.filter(lambda value: abs(value) < 3.4e38)


def test_the_best_of_a_weak_layer_stay_in_place_of_better_ones() -> None:
    scores = {"weak": torch.tensor([0.1, 0.3, 0.2, 0.0]), "strong": torch.tensor([4.0, 6, 5, 7])}
    assert flat(keep_top(scores, 0.5)) == [False] * 4 + [True] * 4
    assert flat(keep_top(scores, 0.5, floor=0.25)) == [False, True, False, False] + [
        False, True, True, True,
    ]  # fmt: skip


def test_a_part_of_a_weight_counts_as_one() -> None:
    scores = {"weak": torch.zeros(3), "strong": torch.ones(7)}
    assert layer_densities(keep_top(scores, 0.5, floor=0.34))["weak"] == 2 / 3


def test_a_floor_of_0_changes_nothing() -> None:
    scores = {"weak": torch.zeros(4), "strong": torch.ones(4)}
    assert layer_densities(keep_top(scores, 0.5, floor=0.0)) == {"weak": 0, "strong": 1}


def test_negative_scores_have_a_floor_too() -> None:
    scores = {"weak": torch.tensor([-9.0, -8]), "strong": torch.tensor([-1.0, -2])}
    assert flat(keep_top(scores, 0.5, floor=0.5)) == [False, True, True, False]


def test_a_floor_at_the_density_keeps_that_of_every_layer() -> None:
    scores = {"a": torch.arange(8.0), "b": torch.arange(4.0) + 100}
    assert layer_densities(keep_top(scores, 0.25, floor=0.25)) == {"a": 0.25, "b": 0.25}


def test_a_floor_that_holds_more_than_the_density_keeps_is_refused() -> None:
    scores = {"a": torch.rand(3), "b": torch.rand(3)}
    with pytest.raises(UsageError, match="0.34 holds 4 weights where density 0.34 keeps 3"):
        keep_top(scores, 0.34, floor=0.34)


def test_scores_of_different_layers_are_not_changed_by_a_floor() -> None:
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    keep_top(scores, 0.5, floor=0.5)
    assert flat(scores) == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_refused_under_a_floor(bad: float) -> None:
    with pytest.raises(NumericError, match="not finite"):
        keep_top({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([bad, 1.0])}, 0.5, floor=0.5)


@st.composite
def scores_and_floor(draw: st.DrawFn) -> tuple[dict[str, Tensor], float, float]:
    """Scores, a density, and a floor for which it has room."""
    scores = draw(layers(FINITE))
    density, floor = sorted((draw(st.floats(0.001, 1)), draw(st.floats(0, 1))), reverse=True)
    if sum(held(scores, floor)) > kept(scores, density):
        floor = 0.0
    return scores, density, floor


def held(scores: dict[str, Tensor], floor: float) -> list[int]:
    sizes = [tensor.numel() for tensor in scores.values()]
    return [size - int((1 - floor) * size) for size in sizes]


def kept(scores: dict[str, Tensor], density: float) -> int:
    total = len(flat(scores))
    return total - int((1 - density) * total)


def by_sorting(scores: dict[str, Tensor], density: float, floor: float) -> list[bool]:
    """The definition: the best of each layer first, then the best of the others."""
    values = [(-v, place) for place, v in enumerate(flat(scores))]
    chosen, start = set(), 0
    for tensor, count in zip(scores.values(), held(scores, floor), strict=True):
        layer = sorted(values[start : start + tensor.numel()])
        chosen |= {place for _, place in layer[:count]}
        start += tensor.numel()
    others = [place for _, place in sorted(values) if place not in chosen]
    chosen |= set(others[: kept(scores, density) - len(chosen)])
    return [place in chosen for place in range(len(values))]


@given(scores_and_floor())
def test_any_scores_with_a_floor_agree_with_sorting(case: tuple) -> None:
    scores, density, floor = case
    assert flat(keep_top(scores, density, floor)) == by_sorting(scores, density, floor)


@given(scores_and_floor(), st.floats(0.001, 1))
def test_a_sparser_mask_with_the_same_floor_lies_inside(case: tuple, other: float) -> None:
    scores, density, floor = case
    denser = max(density, other)
    sparse, dense = (flat(keep_top(scores, d, floor)) for d in (density, denser))
    assert not any(inner and not outer for inner, outer in zip(sparse, dense, strict=True))


# Methods


def weak_model():
    """The tiny model with a middle layer that no method would keep."""
    model = tiny_model()
    with torch.no_grad():
        model.network[3].weight.mul_(1e-6)
    return model


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_every_method_holds_the_floor_and_the_count(name: str, views: tuple[str, ...]) -> None:
    found = find(name, model=weak_model(), views=views, density=0.2, floor=0.15)
    masks = found.masks
    total = sum(weight.numel() for weight in prunable(tiny_network()).values())
    assert min(layer_densities(masks).values()) >= 0.15
    assert kept_count(masks) == total - int((1 - found.search.density) * total)


@pytest.mark.parametrize("name", ["vpns", "hydra", "bip"])
def test_scores_are_trained_under_masks_with_the_floor(name: str) -> None:
    model = weak_model()
    log = Watch(model.network)
    find(name, model=model, log=log, density=0.2, floor=0.15)
    sizes = [weight.numel() for weight in prunable(model.network).values()]
    seen = [mask.split(sizes) for mask in log.seen["search"]]
    assert seen and all(part.float().mean() >= 0.15 for parts in seen for part in parts)


def test_magnitude_empties_that_layer_without_a_floor() -> None:
    masks = find("omp", model=weak_model(), density=0.2, epochs=0).masks
    assert layer_densities(masks)["3.weight"] == 0


# The program

WEAK = "layer2.0.conv1"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights with a layer of zeros, which SNIP gives no score."""
    path = tmp_path_factory.mktemp("weights") / "weak.safetensors"
    state = build_network("resnet20", "none", seed=7).state_dict()
    state[f"{WEAK}.weight"].zero_()
    save_file(state, path)
    return path


def run(save_dir: Path, weights: Path, *words: object) -> cli.Done:
    """One level at density 0.1 with SNIP."""
    settings = ("--weights", weights, "--prune_method", "snip", "--density_list", "0.1")
    return cli.run(save_dir, *settings, "--eval_every", 0, *words)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> cli.Done:
    return run(tmp_path_factory.mktemp("empty"), weights)


def masks_in(done: cli.Done) -> dict[str, Tensor]:
    return masks_of(*load_model(done.folder / "d0.1/model.safetensors"))


def test_an_empty_layer_is_reported_before_fine_tuning(empty: cli.Done) -> None:
    assert layer_densities(masks_in(empty))[f"{WEAK}.weight"] == 0
    lines = empty.out.splitlines()
    reported = next(n for n, line in enumerate(lines) if "the mask leaves no weight in" in line)
    assert reported < next(n for n, line in enumerate(lines) if "finetune" in line)
    shares = layer_densities(masks_in(empty)).items()
    empty_ones = [name.removesuffix(".weight") for name, share in shares if share == 0]
    assert lines[reported] == (
        f"density 0.1: the mask leaves no weight in {', '.join(empty_ones)}; "
        "--min_layer_density would"
    )


def test_a_run_with_a_floor_keeps_it_in_every_layer_and_the_count_in_all(
    tmp_path: Path, weights: Path
) -> None:
    done = run(tmp_path, weights, "--min_layer_density", 0.08)
    assert min(layer_densities(masks_in(done)).values()) >= 0.08
    row = done.result["rows"][0]
    assert row["kept"] == row["prunable"] - int((1 - 0.1) * row["prunable"])
    assert "leaves no weight" not in done.out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((0.11,), "--min_layer_density 0.11 is above density 0.1: no mask can keep so much of "
         "every layer"),
        ((0.3, "--density_list", "0.5,0.2"), "--min_layer_density 0.3 is above density 0.2: no "
         "mask can keep so much of every layer"),
        ((-0.1,), "argument --min_layer_density: -0.1 is out of range: it must be from 0 to 1 "
         "(--help lists the flags)"),
    ],
)  # fmt: skip
def test_a_floor_above_the_lowest_density_is_refused(
    tmp_path: Path, weights: Path, words: tuple, reason: str
) -> None:
    done = run(tmp_path / "run", weights, "--min_layer_density", *words)
    assert done.code == 2 and done.error == reason
    assert not (tmp_path / "run").exists()


def test_a_floor_that_whole_weights_cannot_meet_is_refused_before_any_training(
    tmp_path: Path, weights: Path
) -> None:
    done = run(tmp_path, weights, "--min_layer_density", 0.1, "--prune_method", "omp")
    assert done.code == 2 and "choose a lower one" in done.error
    assert "epoch" not in done.out


def test_a_floor_that_a_later_density_cannot_meet_is_refused_before_the_first(
    tmp_path: Path, weights: Path
) -> None:
    words = ["--density_list", "0.3,0.1", "--min_layer_density", 0.1, "--prune_method", "omp"]
    for done in (run(tmp_path, weights, *words), run(tmp_path, weights, *words, "--dry_run")):
        assert done.code == 2 and "where density 0.1 keeps" in done.error
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_given_mask_below_the_floor_is_refused(
    tmp_path: Path, weights: Path, empty: cli.Done
) -> None:
    mask = empty.folder / "d0.1/model.safetensors"
    done = run(tmp_path, weights, "--init_mask", mask, "--min_layer_density", 0.01)
    assert done.code == 2
    assert done.error.startswith(f"{mask} keeps less than --min_layer_density 0.01 of ")
    assert WEAK in done.error


def test_the_mask_of_a_state_of_the_search_has_the_floor(tmp_path: Path, weights: Path) -> None:
    words = ("--prune_method", "hydra", "--min_layer_density", 0.08)
    hook = (StageLog, "save", 1, cli.send("SIGKILL"), True)
    cli.forked(
        tmp_path / "run", "--weights", weights, "--density_list", "0.1", *words,
        before=lambda: cli.at_call(*hook),
    )  # fmt: skip
    (state,) = cli.only_run(tmp_path / "run").glob("d0.1/state-1.pt")
    masks = read_checkpoint(state, {"weights": str(weights)}).masks
    assert min(layer_densities(masks).values()) >= 0.08
