"""table.csv of a report: one row a method and sparsity, exact numbers."""

from report.compare import Summary
from report.panel import Panel

COLUMNS = (
    "network", "dataset", "method", "sparsity", "seeds", "n", "clean_mean", "clean_std",
    "prompted_mean", "prompted_std", "passes", "seconds_a_run", "paper", "paper_std",
)  # fmt: skip


def csv_rows(panel: Panel) -> list[list[str]]:
    """The rows of table.csv, a method and sparsity each; a missing cell has n = 0."""
    rows = []
    for label in panel.labels:
        for level in panel.expected(label):
            seeds = [seed for seed, at in panel.cells(label) if at == level]
            clean = panel.summary(label, level, "clean")
            prompted = panel.summary(label, level, "prompted") if panel.prompted(label) else None
            paper = panel.paper(label).get(level, (None, None))
            costs = panel.passes(label, level), panel.seconds(label)
            rows.append([
                *panel.where, label, f"{level:g}", " ".join(map(str, seeds)), str(len(seeds)),
                *_exact(clean), *_exact(prompted), *map(_plain, (*costs, *paper)),
            ])  # fmt: skip
    return rows


def _exact(summary: Summary | None) -> list[str]:
    return ["", ""] if summary is None else [_plain(summary.mean), _plain(summary.std)]


def _plain(value: float | None) -> str:
    """At most four decimals, as results.csv has them."""
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")
