"""Masks that move while the weights train: GMP, AC/DC and RigL, against hand-worked steps."""

import pytest
import torch
from conftest import MemoryLog, TinyData, TinyView, tiny_model
from searches import BOTH, Watch, make_search, weights
from torch import Tensor, nn

from pruning import METHODS, acdc, gmp, rigl
from pruning.masks import kept_count, prunable
from utils.errors import Interrupted

TOTAL = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 6
MOVING = pytest.mark.parametrize("name", ["gmp", "acdc", "rigl"])


def watched(name: str, epochs: int = 4, density: float = 0.2) -> tuple[Watch, dict]:
    """Which weights were not zero in each forward of a search, and its masks."""
    model = tiny_model()
    log = Watch(model.network)
    search = make_search(model, log=log, epochs=epochs, density=density)
    return log, METHODS[name].find_masks(search)


@MOVING
def test_the_network_is_left_under_its_masks_with_the_weights_that_were_trained(name):
    model, before = tiny_model(), weights(tiny_model().network)
    masks = METHODS[name].find_masks(make_search(model, density=0.2, views=BOTH))
    assert kept_count(masks) == TOTAL - int(0.8 * TOTAL)
    for key, weight in prunable(model.network).items():
        assert not weight[~masks[key]].any()
        assert not torch.equal(weight[masks[key]], before[key][masks[key]])
    assert "moving_mask" not in dict(model.named_buffers())


def test_gmp_falls_along_a_cubic_and_ends_before_the_search_does() -> None:
    assert gmp.density_at(0.0, 0.1) == 1.0
    assert gmp.density_at(0.34375, 0.1) == pytest.approx(0.1 + 0.9 / 8)  # half of the way
    assert gmp.density_at(0.6875, 0.1) == gmp.density_at(1.0, 0.1) == pytest.approx(0.1)


def test_gmp_never_brings_a_pruned_weight_back() -> None:
    log, masks = watched("gmp")
    seen = log.seen["search"]
    assert not any((after & ~before).any() for before, after in zip(seen, seen[1:], strict=False))
    counts = [int(alive.sum()) for alive in seen]
    asked = [TOTAL - int((1 - gmp.density_at(step / 12, 0.2)) * TOTAL) for step in range(1, 13)]
    assert sorted(set(counts)) == sorted(set(asked)) and counts[0] > counts[-1] == min(asked)


@pytest.mark.parametrize("name", ["gmp", "acdc"])
def test_the_largest_weights_of_a_moment_stay(name):
    model = tiny_model()
    search = make_search(model, epochs=1, density=0.5, data=TinyData(clean=TinyView("clean", 8)))
    sizes = torch.cat([w.detach().abs().flatten() for w in prunable(model.network).values()])
    masks = METHODS[name].find_masks(search)  # one step, which begins at the last density
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert torch.equal(kept, sizes >= sizes.sort(descending=True).values[TOTAL // 2 - 1])


@MOVING
def test_without_an_epoch_the_count_is_exact_too(name):
    masks = METHODS[name].find_masks(make_search(epochs=0, density=0.2))
    assert kept_count(masks) == TOTAL - int(0.8 * TOTAL)


def test_acdc_takes_turns_as_in_the_paper() -> None:
    phases = "".join("S" if acdc.is_sparse(part) else "D" for part in range(20))
    assert phases == "DDSDSDSDSDSDSDSDSSSS"


def test_acdc_lets_pruned_weights_come_back_until_the_last_part() -> None:
    log, masks = watched("acdc", epochs=8)
    counts = [int(alive.sum()) for alive in log.seen["search"]]
    few = TOTAL - int(0.8 * TOTAL)
    assert counts[0] == TOTAL and counts[-1] == few
    assert few in counts[2:12] and max(counts[4:12]) > few
    seen = log.seen["search"]
    assert any((after & ~before).any() for before, after in zip(seen, seen[1:], strict=False))


def test_rigl_spreads_the_density_over_layers_by_their_dimensions() -> None:
    shapes = {"a": (64, 3, 3, 3), "b": (128, 64, 3, 3), "c": (10, 128)}
    layers = {name: torch.empty(shape) for name, shape in shapes.items()}
    counts = rigl.layer_counts(layers, 0.05)
    total = sum(layer.numel() for layer in layers.values())
    assert sum(counts.values()) == total - int(0.95 * total)
    sums = {name: sum(shape) for name, shape in shapes.items()}
    scale = sum(counts.values()) / sum(sums.values())
    full = {name for name in shapes if sums[name] * scale > layers[name].numel()}
    assert {name for name in shapes if counts[name] == layers[name].numel()} == full
    assert rigl.layer_counts(layers, 1.0) == {n: t.numel() for n, t in layers.items()}


def test_rigl_drops_the_smallest_and_grows_where_the_gradient_is_largest() -> None:
    weight = torch.tensor([0.1, -0.5, 0.3, 0.0, 0.0, 0.0, 0.0, 0.9])
    mask = torch.tensor([True, True, True, False, False, False, False, True])
    grad = torch.tensor([0.0, 9.0, 0.1, 0.2, -3.0, 0.4, 2.0, 9.0])
    rigl.moved(weight, grad, mask, 0.5)  # two of four: 0.1 and 0.3 go, places 4 and 6 come
    assert mask.int().tolist() == [0, 1, 0, 0, 1, 0, 1, 1]
    torch.testing.assert_close(weight, torch.tensor([0, -0.5, 0, 0, 0, 0, 0, 0.9]))


def test_rigl_may_grow_again_what_it_has_just_dropped() -> None:
    weight, mask = torch.tensor([0.1, 0.5, 0.0, 0.0]), torch.tensor([True, True, False, False])
    rigl.moved(weight, torch.tensor([8.0, 0.0, 1.0, 2.0]), mask, 0.5)
    assert mask.tolist() == [True, True, False, False]
    torch.testing.assert_close(weight, torch.tensor([0.1, 0.5, 0.0, 0.0]))


def test_rigl_moves_less_and_less_and_keeps_the_count_of_each_layer() -> None:
    log, masks = watched("rigl", epochs=8)
    counts = rigl.layer_counts(prunable(tiny_model().network), 0.2)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
    seen = log.seen["search"]  # 24 forwards, and the end of each epoch of three
    changed = [int((a ^ b).sum()) for a, b in zip(seen, seen[1:], strict=False)]
    assert sum(changed[:4]) > sum(changed[19:23]) > 0 and not any(changed[24:])


@MOVING
@pytest.mark.parametrize("stop_after", [1, 4, 5, 7, 11])
def test_a_search_goes_on_under_the_mask_that_it_was_stopped_under(name, stop_after):
    def search(model: nn.Module, log: MemoryLog) -> dict[str, Tensor]:
        return METHODS[name].find_masks(make_search(model, log=log, epochs=4, density=0.2))

    calm, stopped, again = (tiny_model() for _ in range(3))
    masks, log = search(calm, MemoryLog()), MemoryLog(stop_after)
    with pytest.raises(Interrupted):
        search(stopped, log)
    resumed = search(again, MemoryLog(state=log.states[-1]))
    assert all(torch.equal(masks[key], mask) for key, mask in resumed.items())
    assert all(torch.equal(calm.state_dict()[key], t) for key, t in again.state_dict().items())
