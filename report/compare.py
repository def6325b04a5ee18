"""Arithmetic of a comparison: means over seeds and paired differences."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Summary(NamedTuple):
    """Mean and sample standard deviation (None for one value) of n values."""

    mean: float
    std: float | None
    n: int


class Difference(NamedTuple):
    """Paired differences to a reference, in points: mean, its standard error, who was higher."""

    mean: float
    error: float | None
    wins: int
    ties: int
    losses: int


def summarize(values: Iterable[float]) -> Summary | None:
    """None when there is no value."""
    values = list(values)
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


def compare(values: Mapping[Any, float], reference: Mapping[Any, float]) -> Difference | None:
    """`values - reference` over the keys that both have; None when they share none."""
    shared = [key for key in values if key in reference]
    # Accuracies have four decimals: what binary fractions add to a difference is no win.
    gaps = [round(values[key] - reference[key], 6) for key in shared]
    summary = summarize(gaps)
    if summary is None:
        return None
    error = None if summary.std is None else summary.std / math.sqrt(summary.n)
    signs = [(gap > 0) - (gap < 0) for gap in gaps]
    return Difference(summary.mean, error, signs.count(1), signs.count(0), signs.count(-1))
