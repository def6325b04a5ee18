"""The highest of many values: exactly how many, which ones, and quickly.

A search selects after every step, out of millions, so this is where a step spends its time
beside the network's own arithmetic.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.counts import count_at, pruned_count
from utils.errors import NumericError, UsageError

SAMPLE = 1 << 17  # values that are looked at to guess where the k-th smallest lies
DEVIATIONS = 3  # of the sample's rank, to either side of the guess
LATELY = 4  # moves of the threshold that are remembered
MOVES = 4  # times the second longest of them, to either side of the last threshold
ROW = 1 << 12  # values of which an accelerator counts the ties together
BLOCK = 1 << 17  # values that are worked on together, since they stay in the cache

Bracket = tuple[float, float]


class Threshold(NamedTuple):
    """Where a selection ends: values above `value` stay, and those at `ties`."""

    value: float
    ties: Tensor  # int64 (T,): places of values equal to the threshold; nearly always none


def select_top(values: Tensor, density: float) -> Tensor:
    """Keep the highest of a flat tensor (N,), an exact count of them: bool (N,), True is kept.

    N - int((1 - density) * N) stay; of equal values at the threshold the first in order stay.
    Raises NumericError when a value is not finite; on an accelerator nothing waits for the
    device, and such a value is for the caller to find.
    """
    if values.device.type != "cpu":
        return _select_on_device(values, pruned_count(values.numel(), density))
    require_finite(values)
    threshold, ties = find_threshold(values, density)
    keep = values > threshold
    keep[ties] = True
    return keep


class TrackedThreshold:
    """`find_threshold` for magnitudes that change little from call to call, as scores do.

    The last thresholds tell where the next one is, more closely than a sample does. They change
    the time that it takes, never the result. One jump, as when a search's scores are loaded, costs
    a sample and no more: it is not the second longest move.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._moves: deque[float] = deque(maxlen=LATELY)

    def __call__(self, values: Tensor, density: float) -> Threshold:
        """The threshold of the magnitudes of finite values (N,) on the CPU."""
        threshold = find_threshold(values, density, magnitude=True, guess=self._guess())
        if self._last is not None:
            self._moves.append(abs(threshold.value - self._last))
        self._last = threshold.value
        return threshold

    def _guess(self) -> Bracket | None:
        margin = MOVES * sorted(self._moves)[-2] if len(self._moves) > 1 else 0.0
        return (self._last - margin, self._last + margin) if margin else None


def find_threshold(
    values: Tensor, density: float, magnitude: bool = False, guess: Bracket | None = None
) -> Threshold:
    """The threshold of `select_top` for finite values (N,) on the CPU, or for their magnitudes.

    A bracket around the threshold comes from `guess` or from a sample; one pass counts what lies
    below it and collects what lies inside, where numpy selects. With a sample that takes two
    thirds of numpy's selection over all values, which takes a seventh of torch.kthvalue's time.
    """
    array, pruned = values.detach().numpy(), pruned_count(values.numel(), density)
    if pruned == 0:
        return Threshold(-math.inf, torch.empty(0, dtype=torch.int64))
    for bracket in _brackets(array, pruned, magnitude, guess):
        below, inside, places = _between(array, bracket, magnitude)
        if below < pruned <= below + inside.size:
            break
    threshold = _kth_smallest(inside, pruned - below)
    kept_ties = below + np.count_nonzero(inside <= threshold) - pruned
    ties = places[inside == threshold][:kept_ties]
    return Threshold(float(threshold), torch.from_numpy(ties))


def _brackets(
    array: np.ndarray, k: int, magnitude: bool, guess: Bracket | None
) -> Iterator[Bracket]:
    """Where the k-th smallest may lie, in the order in which to look."""
    if guess is not None:
        yield guess
    yield _sampled(array, k, magnitude)
    yield -math.inf, math.inf


def _sampled(array: np.ndarray, k: int, magnitude: bool) -> Bracket:
    """Two values between which the k-th smallest very likely lies."""
    step = 6 * (array.size // (6 * SAMPLE)) + 1  # not even, not the size of a kernel's row
    sample = np.abs(array[::step]) if magnitude else array[::step].copy()
    share = k / array.size
    middle = share * sample.size
    margin = DEVIATIONS * math.sqrt(share * (1 - share) * sample.size) + 1
    low = max(int(middle - margin), 0)
    high = min(int(middle + margin), sample.size - 1)
    sample.partition((low, high))
    return sample[low], sample[high]


def _between(
    array: np.ndarray, bracket: Bracket, magnitude: bool
) -> tuple[int, np.ndarray, np.ndarray]:
    """How many values are below a bracket; the values inside, ends included, and their places."""
    low, high = bracket
    buffer = np.empty(BLOCK, array.dtype)
    less, upto = np.empty(BLOCK, bool), np.empty(BLOCK, bool)
    below, values, places = 0, [], []
    for start in range(0, array.size, BLOCK):
        part = array[start : start + BLOCK]
        under, within = less[: part.size], upto[: part.size]
        if magnitude:
            part = np.abs(part, out=buffer[: part.size])
        np.less(part, low, out=under)
        np.less_equal(part, high, out=within)
        below += np.count_nonzero(under)
        inside = np.flatnonzero(np.not_equal(under, within, out=within))
        values.append(part[inside])
        places.append(inside + start)
    return below, np.concatenate(values), np.concatenate(places)


def _kth_smallest(values: np.ndarray, k: int) -> float:
    if values.min() == values.max():  # numpy takes thirty times as long over equal values
        return values[0]
    return np.partition(values, k - 1)[k - 1]


def require_finite(values: Tensor) -> None:
    """Raises NumericError for a score that is not finite; the sum is looked at first."""
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise NumericError("a score is not finite and cannot decide a mask")


def _select_on_device(values: Tensor, pruned: int) -> Tensor:
    """`select_top` without a number that the host would wait for.

    On an H100 topk of the smaller side takes 0.3 ms for 11.7 M values, and kthvalue 72.
    """
    kept = values.numel() - pruned
    if pruned == 0:
        return torch.ones_like(values, dtype=torch.bool)
    if kept <= pruned:
        threshold = values.topk(kept, sorted=False).values.min()
    else:
        threshold = values.topk(pruned, largest=False, sorted=False).values.max()
    keep = values > threshold
    return keep.logical_or_(_first_true(values == threshold, kept - keep.sum()))


def _first_true(flags: Tensor, count: Tensor) -> Tensor:
    """The first `count` of the places that are True in a flat bool tensor (N,), the others False.

    Counted row by row, then in the one row where the count is reached: a running sum over all
    places would take as long as half a selection.
    """
    rows = F.pad(flags, (0, -len(flags) % ROW)).view(-1, ROW)
    upto = rows.sum(1).cumsum(0)
    last = torch.searchsorted(upto, count).clamp_(max=len(rows) - 1)  # the row of the last one
    inside = rows.index_select(0, last.view(1)).cumsum(1)
    left = count - upto.index_select(0, last.view(1)) + inside[:, -1]
    number = torch.arange(len(rows), device=flags.device)[:, None]
    chosen = (number < last) | ((number == last) & (inside <= left))
    return (rows & chosen).view(-1)[: len(flags)]


def require_room(sizes: Sequence[int], density: float, floor: float) -> None:
    """Raises UsageError when floors under layers of these sizes exceed what `density` keeps."""
    kept = count_at(density, sum(sizes))
    held = sum(count_at(floor, size) for size in sizes)
    if held > kept:
        raise UsageError(
            f"--min_layer_density {floor:g} holds {held:,} weights where density {density:g} keeps "
            f"{kept:,}: choose a lower one"
        )


def lift_best(values: Tensor, sizes: Sequence[int], floor: float) -> Tensor:
    """Raise the best share `floor` of each layer above all others, in place; returns `values`.

    `values` (N,) holds layers of `sizes`, below the largest number of its type. With a floor,
    NumericError is raised as in `select_top`.
    """
    if floor > 0:
        highest = values.max()
        above = (highest + highest.abs() + 1).clamp(max=torch.finfo(values.dtype).max)
        for layer in values.split(list(sizes)):  # masked_fill_ would wait for `above`
            torch.where(select_top(layer, floor), above, layer, out=layer)
    return values
