"""All runs on one network and dataset: their methods, sparsities, cells and means."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pruning import Method
from report.paper import Curve, published
from report.runs import Run, facts, rank
from utils.errors import VPNsError

PANELS = 100  # more would take minutes to draw


class Mean(NamedTuple):
    """Mean and sample standard deviation (None for one value) of n values."""

    mean: float
    std: float | None
    n: int


def mean_of(values: Iterable[float | None]) -> Mean | None:
    """None when there is no value."""
    numbers = [value for value in values if value is not None]
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Mean(statistics.fmean(numbers), std, len(numbers)) if numbers else None


@dataclass(frozen=True)
class Series:
    """The runs of one method, a run a seed, and the accuracy that is compared."""

    label: str
    runs: Sequence[Run]
    accuracy: str  # clean or prompted

    @property
    def method(self) -> Method:
        return facts(self.runs[0].method)

    @property
    def dense(self) -> bool:
        return self.method.only_density == 1

    @property
    def levels(self) -> set[float]:
        return set().union(*(run.levels for run in self.runs))

    @property
    def prompted(self) -> bool:
        """Whether any run was measured with its prompt."""
        return any(row["prompted"] is not None for run in self.runs for row in run.rows.values())

    def cells(self, accuracy: str = "") -> dict[tuple[int, float], float]:
        """Accuracies by seed and sparsity; clean where a run never prompts."""
        column = accuracy or self.accuracy
        rows = {(run.seed, level): row for run in self.runs for level, row in run.rows.items()}
        return {at: row["clean" if row[column] is None else column] for at, row in rows.items()}

    def mean(self, level: float, accuracy: str = "") -> Mean | None:
        """Mean accuracy over the seeds at one sparsity; None for `prompted` without any prompt."""
        if accuracy == "prompted" and not self.prompted:
            return None
        return mean_of(value for (_, at), value in self.cells(accuracy).items() if at == level)

    def passes(self, level: float) -> Mean | None:
        """Mean passes over the training set (forward and backward) that a level took."""
        return mean_of(run.rows[level].get("passes") for run in self.runs if level in run.rows)

    def seconds(self) -> Mean | None:
        """Mean seconds of a run, all levels together."""
        return mean_of(run.record["seconds"] for run in self.runs)

    def paper(self) -> Curve:
        """The paper's numbers for the method, measured as ours are."""
        return published(self.runs[0].config, self.accuracy if self.prompted else "clean")


@dataclass(frozen=True)
class Panel:
    """The methods that ran on one network and dataset, in the order of the tables."""

    where: tuple[str, str]
    series: Sequence[Series]

    @property
    def title(self) -> str:
        return " on ".join(self.where)

    @property
    def runs(self) -> list[Run]:
        """All runs by label and seed."""
        runs = (run for series in self.series for run in series.runs)
        return sorted(runs, key=lambda run: run.label)

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def prompted(self) -> bool:
        return any(series.prompted for series in self.series)

    @property
    def levels(self) -> list[float]:
        """Sparsities of the table: all but those that only a chained method has."""
        plain = [series.levels for series in self.series if not series.method.chained]
        levels = set().union(*plain) - {0}
        return sorted(levels or set().union(*(series.levels for series in self.series)) - {0})

    def rest(self, series: Series) -> list[float]:
        """Sparsities of a chained method that are no columns of the table."""
        return sorted(series.levels - {0} - set(self.levels))

    def expected(self, series: Series) -> list[float]:
        """Sparsities at which a method has a cell, filled or missing."""
        if series.dense:
            return [0.0]
        return sorted(series.levels) if self.rest(series) else self.levels


def panels(runs: Sequence[Run], accuracy: str = "clean") -> list[Panel]:
    """The runs by network and dataset, in order of name, their methods by rank.

    Raises VPNsError for more than PANELS of them.
    """
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: (run.where, rank(run.method), run.label)):
        groups.setdefault(run.where, {}).setdefault(run.label, []).append(run)
    if len(groups) > PANELS:
        raise VPNsError(f"runs of {len(groups)} pairs of a network and a dataset, where a report "
                        f"shows {PANELS} at most: name fewer")
    return [Panel(where, [Series(*item, accuracy) for item in by_label.items()])
            for where, by_label in groups.items()]
