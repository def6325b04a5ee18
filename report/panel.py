"""All runs on one network and dataset: which cells there are, their means, what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from report.compare import Summary, summarize
from report.paper import NAMES, Curve, published
from report.records import Record
from runfolder.results import DENSE, Row

# Methods that prune round by round, so that their published sparsities are their own.
OWN_LEVELS = ("lth",)


@dataclass(frozen=True)
class Panel:
    """The runs, and the accuracy that is compared (clean or prompted)."""

    where: tuple[str, str]
    records: Sequence[Record]
    accuracy: str = "clean"

    @property
    def title(self) -> str:
        return " on ".join(self.where)

    @property
    def labels(self) -> list[str]:
        """Methods in the paper's order, the dense network first, then others by name."""
        rank = {name: number for number, name in enumerate(NAMES)}
        named = {r.label: (rank.get(r.method, len(rank)), r.label) for r in self.records}
        return sorted(named, key=named.__getitem__)

    @property
    def seeds(self) -> list[int]:
        return sorted({record.seed for record in self.records})

    def of(self, label: str) -> list[Record]:
        """The runs of a method, a run a seed."""
        return [record for record in self.records if record.label == label]

    def method(self, label: str) -> str:
        return self.of(label)[0].method

    def round_by_round(self, label: str) -> bool:
        return self.method(label) in OWN_LEVELS

    def asked(self, label: str) -> set[float]:
        return set().union(*(record.asked for record in self.of(label)))

    @property
    def levels(self) -> list[float]:
        """Sparsities of the table: all but those that only a round-by-round method has."""
        common = [label for label in self.labels if not self.round_by_round(label)]
        pruned = [level for label in common for level in self.asked(label) if level > 0]
        return sorted(set(pruned) or set().union(*(map(self.asked, self.labels))) - {0})

    @property
    def columns(self) -> list[float]:
        """The levels, behind sparsity 0 if there is a dense run."""
        return [0.0] * any(self.method(label) in DENSE for label in self.labels) + self.levels

    def own_levels(self, label: str) -> list[float]:
        """Sparsities of a round-by-round method that are no columns of the table."""
        return sorted(self.asked(label) - {0} - set(self.levels))

    def expected(self, label: str) -> list[float]:
        """Sparsities at which a method has a cell, filled or missing."""
        if self.method(label) in DENSE:
            return [0.0]
        return sorted(self.asked(label)) if self.own_levels(label) else self.levels

    def cells(self, label: str, accuracy: str = "") -> dict[tuple[int, float], float]:
        """Accuracies of a method by seed and sparsity; clean where a run never prompts."""
        column = accuracy or self.accuracy
        return {
            (record.seed, level): _value(row, column)
            for record in self.of(label)
            for level, row in record.rows.items()
        }

    def summary(self, label: str, level: float, accuracy: str = "") -> Summary | None:
        """Mean over the seeds at one sparsity."""
        cells = self.cells(label, accuracy).items()
        return summarize(value for (_, at), value in cells if at == level)

    def curve(self, label: str) -> dict[float, Summary]:
        """Sparsity to mean over the seeds, where there is any."""
        found = {level: self.summary(label, level) for level in sorted(self.asked(label))}
        return {level: summary for level, summary in found.items() if summary is not None}

    def prompted(self, label: str) -> bool:
        """Whether any run of the method was measured with its prompt."""
        rows = (row for record in self.of(label) for row in record.rows.values())
        return any(row.get("prompted") is not None for row in rows)

    def passes(self, label: str, level: float) -> float | None:
        """Mean passes over the training set (forward and backward) that a level took."""
        rows = [record.rows[level] for record in self.of(label) if level in record.rows]
        return _mean([row.get("passes") for row in rows])

    def seconds(self, label: str) -> float | None:
        """Mean seconds of a run, all levels together."""
        return _mean([record.run.get("seconds") for record in self.of(label)])

    def missing(self) -> list[tuple[str, int, list[float]]]:
        """Label, seed and sparsities of all cells without a result."""
        found = []
        for label in self.labels:
            have = self.cells(label)
            for seed in self.seeds:
                gaps = [level for level in self.expected(label) if (seed, level) not in have]
                found += [(label, seed, gaps)] if gaps else []
        return found

    def paper(self, label: str) -> Curve:
        """The paper's numbers for a method, measured as ours are."""
        accuracy = self.accuracy if self.prompted(label) else "clean"
        return published(self.of(label)[0].config, accuracy)


def _value(row: Row, column: str) -> float:
    value = row.get(column)
    return row["clean"] if value is None else value


def _mean(values: Sequence[float | None]) -> float | None:
    summary = summarize(value for value in values if value is not None)
    return None if summary is None else summary.mean


def panels(records: Sequence[Record], accuracy: str = "clean") -> list[Panel]:
    """The runs by network and dataset, in order of name."""
    places = sorted({record.where for record in records})
    return [Panel(p, [r for r in records if r.where == p], accuracy) for p in places]
