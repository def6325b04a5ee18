"""The tables of a report: accuracy, comparison with a reference, cost, the paper, missing cells."""

from collections.abc import Iterable, Mapping, Sequence

from report.compare import Difference, Summary, compare
from report.panel import Panel
from report.paper import Curve
from report.tables import Table
from runfolder.results import DENSE


def percents(levels: Iterable[float]) -> list[str]:
    """Sparsities as they head a column."""
    return [f"{level:g} %" for level in levels]


def seed_list(panel: Panel) -> str:
    """`seed 7` or `seeds 7, 9, 17`."""
    return f"seed{'s' * (len(panel.seeds) > 1)} {', '.join(map(str, panel.seeds))}"


def accuracy_table(panel: Panel, accuracy: str) -> Table:
    """A row a method, a column a sparsity; the best mean of a column is bold."""
    labels = panel.labels
    if accuracy == "prompted":
        labels = [label for label in labels if panel.prompted(label)]
    dense = any(panel.method(label) in DENSE for label in labels)
    levels = panel.columns if dense else panel.levels
    best = {level: _best(panel, labels, level, accuracy) for level in levels}

    def cell(label: str, level: float) -> str:
        if level not in panel.expected(label):
            return ""
        summary = panel.summary(label, level, accuracy)
        text = show(summary, len(panel.seeds))
        top = level > 0 and summary is not None and f"{summary.mean:.2f}" == best[level]
        return f"**{text}**" if top else text

    rows = [[label, *(cell(label, level) for level in levels)] for label in labels]
    rows = [row for row in rows if any(row[1:])]
    kind = "with the prompt" if accuracy == "prompted" else "without the prompt"
    title = f"{panel.title}: test accuracy (%) {kind} by sparsity, {seed_list(panel)}"
    return Table(title, [["method", *percents(levels)], *rows])


def _best(panel: Panel, labels: Sequence[str], level: float, accuracy: str) -> str:
    found = [panel.summary(label, level, accuracy) for label in labels]
    means = [summary.mean for summary in found if summary is not None]
    return f"{max(means):.2f}" if len(means) > 1 else ""


def show(summary: Summary | None, seeds: int) -> str:
    """`mean ± standard deviation`; the number of seeds stands behind it if some are missing."""
    if summary is None:
        return "-"
    std = "-" if summary.std is None else f"{summary.std:.2f}"
    count = f" (n={summary.n})" if summary.n < seeds else ""
    return f"{summary.mean:.2f} ± {std}{count}"


def own_tables(panel: Panel) -> list[Table]:
    """The sparsities that only a round-by-round method has, a table a method."""
    tables = []
    for label in panel.labels:
        levels = panel.own_levels(label)
        cells = [show(panel.summary(label, level), len(panel.seeds)) for level in levels]
        rows = [["method", *percents(levels)], [label, *cells]]
        tables += [Table(f"{label} at sparsities of its own:", rows)] if levels else []
    return tables


def comparison_table(panel: Panel, reference: str) -> Table:
    """Every method against the reference, over the seeds and sparsities that both have."""
    base = panel.cells(reference)
    others = [name for name in panel.labels if name != reference and _pruned(panel, name)]
    rows = [_compared(panel, label, base) for label in others]
    head = ["method", "all", "wins", "ties", "losses", *percents(panel.levels)]
    return Table("", [head, *rows])


def _pruned(panel: Panel, label: str) -> bool:
    return panel.method(label) not in DENSE


def _compared(panel: Panel, label: str, base: Mapping[tuple[int, float], float]) -> list[str]:
    cells = panel.cells(label)
    whole = compare(cells, base)
    counts = ["-"] * 3 if whole is None else [str(count) for count in whole[2:]]
    parts = [
        compare({key: value for key, value in cells.items() if key[1] == level}, base)
        for level in panel.levels
    ]
    return [label, _gap(whole), *counts, *map(_gap, parts)]


def _gap(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    error = "-" if difference.error is None else f"{difference.error:.2f}"
    return f"{difference.mean:+.2f} ± {error}"


def cost_table(panel: Panel) -> Table:
    """Passes over the training set that each level took, and the seconds of a whole run."""
    levels = sorted(set(panel.columns).union(*map(panel.own_levels, panel.labels)))

    def cell(label: str, level: float) -> str:
        return _number(panel.passes(label, level)) if level in panel.expected(label) else ""

    rows = [
        [label, *(cell(label, level) for level in levels), _number(panel.seconds(label))]
        for label in panel.labels
    ]
    return Table("", [["method", *percents(levels), "seconds a run"], *rows])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}".removesuffix(".0")


def paper_tables(panel: Panel) -> list[Table]:
    """The paper's numbers for the methods of the panel; a round-by-round one stands alone."""
    curves = {label: panel.paper(label) for label in panel.labels if panel.paper(label)}
    alone = [label for label in curves if panel.round_by_round(label)]
    groups = [[label for label in curves if label not in alone], *([label] for label in alone)]
    return [_paper_table(group, curves) for group in groups if group]


def _paper_table(labels: Sequence[str], curves: Mapping[str, Curve]) -> Table:
    levels = sorted(set().union(*(curves[label] for label in labels)))

    def cell(label: str, level: float) -> str:
        if level not in curves[label]:
            return ""
        mean, std = curves[label][level]
        return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"

    rows = [[label, *(cell(label, level) for level in levels)] for label in labels]
    return Table("", [["the paper's", *percents(levels)], *rows])
