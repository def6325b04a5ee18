"""A search for learned scores whose density falls from 1 to the one asked for."""

import pytest
import torch
from cli import run
from conftest import MemoryLog, tiny_model
from searches import BOTH, Watch, make_search, nonzero
from torch import nn

from pruning import METHODS
from pruning.masks import Masks, kept_count
from utils.errors import Interrupted

TOTAL = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 6
LEARNED = pytest.mark.parametrize("name", ["vpns", "hydra", "bip"])


def search(name: str, model: nn.Module, log: MemoryLog) -> Masks:
    """Twelve steps to a density of 0.2."""
    return METHODS[name].find_masks(
        make_search(model, log=log, epochs=4, density=0.2, views=BOTH, falls=True)
    )


def density_of(done: int) -> float:
    """Zhu and Gupta, equation 1, whose end is after 68.75 % of the steps."""
    return 0.2 + 0.8 * (1 - min(done / 12 / 0.6875, 1)) ** 3


@LEARNED
def test_each_step_keeps_what_the_cubic_says(name):
    model = tiny_model()
    log = Watch(model.network)
    masks = search(name, model, log)
    asked = [TOTAL - int((1 - density_of(step)) * TOTAL) for step in range(1, 13)]
    alive = [int(kept.sum()) for kept in log.seen["search"]]
    steps = [count for number, count in enumerate(alive) if number % 7 != 6]  # not ends of epochs
    assert steps[::2] == steps[1::2] == asked  # a prompted half-step and a clean one
    assert kept_count(masks) == asked[-1] == TOTAL - int(0.8 * TOTAL)


@LEARNED
@pytest.mark.parametrize("stop_after", [1, 4, 8, 9, 11])
def test_a_search_goes_on_at_the_density_that_it_was_stopped_at(name, stop_after):
    calm, stopped, again = (tiny_model() for _ in range(3))
    masks, log = search(name, calm, MemoryLog()), MemoryLog(stop_after)
    with pytest.raises(Interrupted):
        search(name, stopped, log)
    resumed = search(name, again, MemoryLog(state=log.states[-1]))
    assert all(torch.equal(masks[key], mask) for key, mask in resumed.items())
    assert all(torch.equal(calm.state_dict()[key], t) for key, t in again.state_dict().items())


@LEARNED
def test_labels_are_mapped_with_the_network_of_the_moment(name):
    def mapped(model: nn.Module, log: MemoryLog) -> list[int]:
        counts: list[int] = []
        look = {"remap": lambda: counts.append(int(nonzero(model.network).sum()))}
        look["before_epoch"] = look["remap"]
        METHODS[name].find_masks(make_search(
            model, log=log, epochs=4, density=0.2, views=BOTH, falls=True, **look))  # fmt: skip
        return counts

    stopped = MemoryLog(3)  # at the end of the first epoch
    with pytest.raises(Interrupted):
        mapped(tiny_model(), stopped)
    whole, state = mapped(tiny_model(), MemoryLog()), stopped.states[-1]
    assert whole[0] == whole[1] == TOTAL
    again = mapped(tiny_model(), MemoryLog(state=state | {"epoch": 1, "step": 0}))
    assert again[1:] == whole[2:]


@LEARNED
def test_a_search_without_steps_ends_at_the_density(name):
    masks = METHODS[name].find_masks(make_search(epochs=0, density=0.2, falls=True))
    assert kept_count(masks) == TOTAL - int(0.8 * TOTAL)


@pytest.mark.parametrize("name", ["omp", "gmp", "dense"])
def test_a_method_without_learned_scores_refuses_it(tmp_path, name):
    done = run(tmp_path, "--prune_method", name, "--density_schedule", "cubic")
    assert done.code == 2 and "vpns, hydra, bip" in done.error
