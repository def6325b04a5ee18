"""The selection behind every mask: exact whatever the values, and whatever its sample suggests."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning import selection
from pruning.selection import TrackedThreshold, find_threshold, select_top

MANY = 1_400_000  # beyond ten samples' worth
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def normal(seed: int = 0) -> Tensor:
    return torch.randn(MANY, generator=torch.Generator().manual_seed(seed))


def steps() -> Tensor:
    """Ten layers of very different sizes of their values, as a network's scores have."""
    return torch.cat([part * 10.0**-n for n, part in enumerate(normal().split(MANY // 10))])


def tied() -> Tensor:
    """Nine tenths of the values are equal, which is where numpy's selection is slow."""
    return normal().where(torch.arange(MANY) % 10 == 0, 0.5)


def rounded() -> Tensor:
    return (normal() * 4).round()


def cells() -> Tensor:
    """A pattern with the period of a kernel."""
    return torch.arange(9.0).repeat(MANY // 9 + 1)[:MANY]


PATTERNS = [normal, steps, tied, rounded, cells]


def expected(values: Tensor, density: float) -> Tensor:
    """The kept places, by a stable sort: of equal values the last in order go first."""
    pruned = int((1 - density) * len(values))
    keep = torch.ones(len(values), dtype=torch.bool)
    order = len(values) - 1 - values.flip(0).argsort(stable=True)
    keep[order[:pruned]] = False
    return keep


@given(st.lists(VALUES, min_size=1, max_size=20), st.floats(0.01, 1))
def test_a_selection_is_that_of_a_stable_sort(values: list[float], density: float) -> None:
    tensor = torch.tensor(values)
    assert torch.equal(select_top(tensor, density), expected(tensor, density))


@pytest.mark.parametrize("density", [1e-6, 0.01, 0.2, 0.7, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_selection_of_many_values_is_exact(pattern, density: float) -> None:
    assert torch.equal(select_top(pattern(), density), expected(pattern(), density))


@pytest.mark.parametrize("bracket", [(-9.0, -8.0), (8.0, 9.0), (0.0, 1e-9)])
def test_a_sample_that_misleads_costs_time_only(bracket, monkeypatch) -> None:
    monkeypatch.setattr(selection, "_sampled", lambda *_: bracket)
    assert torch.equal(select_top(rounded(), 0.2), expected(rounded(), 0.2))


@pytest.fixture
def collected(monkeypatch) -> list[tuple[int, int]]:
    """How many values lay below and inside each bracket that was looked at."""
    found, between = [], selection._between

    def watched(*args) -> tuple[int, np.ndarray, np.ndarray]:
        below, values, places = between(*args)
        found.append((below, values.size))
        return below, values, places

    monkeypatch.setattr(selection, "_between", watched)
    return found


def test_only_what_the_sample_brackets_is_sorted(collected) -> None:
    """Else the time would be that of a selection over all values."""
    select_top(normal(), 0.8)
    [(below, inside)] = collected
    assert below < MANY // 5 <= below + inside and 0 < inside < MANY // 25


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_values_stay_as_they_are(pattern) -> None:
    values = pattern()
    select_top(values, 0.3)
    find_threshold(values, 0.3, magnitude=True)
    assert torch.equal(values, pattern())


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_cut_of_magnitudes_is_the_selection(pattern, density: float) -> None:
    values = pattern()
    threshold, ties = find_threshold(values, density, magnitude=True)
    keep = values.abs() > threshold
    keep[ties] = True
    assert torch.equal(keep, select_top(values.abs(), density))
    assert int(keep.sum()) == MANY - int((1 - density) * MANY)


def test_of_equal_values_at_the_threshold_the_first_are_kept() -> None:
    keep = select_top(torch.tensor([1.0, 2.0, 2.0, 3.0, 2.0]), 0.6)
    assert keep.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7, 0.98])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_accelerator_selects_the_same(pattern, share: float) -> None:
    """Its arithmetic, run on the CPU."""
    values, pruned = pattern(), int(share * MANY)
    on_device = selection._select_on_device(values, pruned)
    assert int(on_device.sum()) == MANY - pruned
    assert torch.equal(on_device, select_top(values, 1 - pruned / MANY))


@pytest.mark.parametrize("size", [1, 2, selection.ROW - 1, selection.ROW, 3 * selection.ROW + 5])
@pytest.mark.parametrize("kinds", [1, 2, 7])
def test_an_accelerator_keeps_the_first_of_equal_values(size: int, kinds: int) -> None:
    values = torch.randint(kinds, (size,), generator=torch.Generator().manual_seed(size)).float()
    ranks = torch.sort(-values, stable=True).indices
    for pruned in {0, 1, size // 3, size // 2, size - 1} & set(range(size)):
        expected = torch.zeros(size, dtype=torch.bool)
        expected[ranks[: size - pruned]] = True
        assert torch.equal(selection._select_on_device(values, pruned), expected)


def test_an_accelerator_counts_ties_row_by_row() -> None:
    flags = torch.rand(5 * selection.ROW + 3, generator=torch.Generator().manual_seed(0)) < 0.3
    for count in (0, 1, 1000, selection.ROW, int(flags.sum()) - 1, int(flags.sum())):
        expected = flags & (flags.cumsum(0) <= count)
        assert torch.equal(selection._first_true(flags, torch.tensor(count)), expected)


@pytest.mark.parametrize("step", [0.0, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_moving_threshold_is_the_one_of_each_call(pattern, step: float) -> None:
    moving, values = TrackedThreshold(), pattern()
    for number in range(6):
        values += step * normal(number + 1)
        threshold, ties = moving(values, 0.2)
        keep = values.abs() > threshold
        keep[ties] = True
        assert torch.equal(keep, expected(values.abs(), 0.2))


def test_a_threshold_that_moves_steadily_needs_no_sample(monkeypatch) -> None:
    sampled, plain = [], selection._sampled
    monkeypatch.setattr(selection, "_sampled", lambda *w: sampled.append(1) or plain(*w))
    moving = TrackedThreshold()
    for number in range(8):
        moving(normal() * (1 + 0.001 * number), 0.2)
    assert len(sampled) == 3


@pytest.mark.parametrize("steady", [0, 1, 2, 6])
def test_after_a_jump_few_values_are_sorted(collected, steady: int) -> None:
    """A resumed search sees its initial scores and then those that it loads."""
    moving, values = TrackedThreshold(), normal()
    for number in range(12):
        jump = 1 if number <= steady else 100
        moving(values * (jump + 0.001 * number), 0.2)
    assert max(inside for _, inside in collected) < MANY // 25
    assert len(collected) <= 13  # the jump alone is looked at twice
