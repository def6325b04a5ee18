"""Which of the processes that torchrun has started this one is; alone without torchrun.

The first one writes and speaks for all. Imports nothing of torch; together.py has what the
processes do with one another.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

S = TypeVar("S", bound=Sequence)


def world() -> int:
    """How many processes make this run."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process among all, from 0."""
    return _number("RANK", 0)


def on_this_machine() -> tuple[int, int]:
    """The number of this process among those of its machine, and how many these are."""
    return _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)


def first() -> bool:
    """Whether this process writes the run folder and speaks for all."""
    return rank() == 0


def share(items: S) -> S:
    """The part of a sequence that is this process's: every `world`-th item."""
    return items[rank() :: world()]


def _number(name: str, without: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and os.environ.get("WORLD_SIZE", "1") != "1" else without
