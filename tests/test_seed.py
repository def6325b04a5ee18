"""Random streams that depend on their key alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.seed import generator, key_seed

KEYS = st.lists(st.one_of(st.integers(), st.floats(allow_nan=False), st.text()), max_size=4)


def test_the_seed_of_a_key_never_changes() -> None:
    assert key_seed(7, 0.1, "search", 3) == 7_792_221_126_563_816_864


def test_the_seed_is_the_same_in_another_process() -> None:
    code = "from utils.seed import key_seed; print(key_seed(7, 0.1, 'search', 3))"
    root = Path(__file__).parent.parent
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert int(found.stdout) == key_seed(7, 0.1, "search", 3)


@given(KEYS)
def test_a_seed_has_63_bits(key: list) -> None:
    assert 0 <= key_seed(*key) < 2**63


@pytest.mark.parametrize(
    ("one", "other"),
    [((7, 1), (71,)), ((1, 2), (2, 1)), (("1",), (1,)), ((0.1,), (0.2,)), (("a", "b"), ("ab",))],
)
def test_different_keys_give_different_seeds(one: tuple, other: tuple) -> None:
    assert key_seed(*one) != key_seed(*other)


def test_a_stream_starts_anew_each_time() -> None:
    draws = [torch.rand(5, generator=generator(7, "a")) for _ in range(2)]
    assert torch.equal(*draws)


def test_a_stream_leaves_the_global_one_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(9, generator=generator(7))
    assert torch.equal(torch.rand(3), expected)
