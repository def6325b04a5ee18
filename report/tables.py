"""The numbers of a panel as rows of text cells, the head first; Markdown and LaTeX of such rows."""

import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from report.panel import Mean, Panel, Series, mean_of

LATEX = str.maketrans({letter: f"\\{letter}" for letter in "%&#_${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": r"\textless{}", ">": r"\textgreater{}", '"': r"\textquotedbl{}", "|": r"\textbar{}",
})  # fmt: skip
# Marks of Markdown, underlines but those within a word, and what makes a link of a bare address.
MARKED = re.compile(r"[\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.|:(?=//)|(?<=mailto):")
Rows = Sequence[Sequence[str]]


def percents(levels: Iterable[float]) -> list[str]:
    """Sparsities as they head a column."""
    return [f"{level:g} %" for level in levels]


def _table(
    corner: str, lines: Iterable[Series], levels: Sequence[float], cell: Callable[..., str]
) -> list[list[str]]:
    """A row a method and a column a sparsity: `cell(series, level)`."""
    rows = [[series.label, *(cell(series, level) for level in levels)] for series in lines]
    return [[corner, *percents(levels)], *rows]


def _mean(mean: Mean | None, seeds: int) -> str:
    """`mean ± standard deviation`; the number of seeds stands behind it if some are missing."""
    if mean is None:
        return "-"
    std = "-" if mean.std is None else f"{mean.std:.2f}"
    return f"{mean.mean:.2f} ± {std}" + (f" (n={mean.n})" if mean.n < seeds else "")


def accuracy_rows(panel: Panel, accuracy: str) -> Rows:
    """A row a method, a column a sparsity; the best mean of a column is bold."""
    lines = [s for s in panel.series if accuracy == "clean" or s.prompted]
    levels = [0.0] * any(s.dense for s in lines) + panel.levels
    seeds = len(panel.seeds)

    def cell(series: Series, level: float) -> str:
        if level not in panel.expected(series):
            return ""
        mean = series.mean(level, accuracy)
        means = [other.mean for s in lines if (other := s.mean(level, accuracy))]
        top = mean and level > 0 and len(means) > 1 and f"{mean.mean:.2f}" == f"{max(means):.2f}"
        return f"**{_mean(mean, seeds)}**" if top else _mean(mean, seeds)

    head, *rows = _table("method", lines, levels, cell)
    return [head, *(row for row in rows if any(row[1:]))]


def rest_rows(panel: Panel, series: Series) -> Rows:
    """The sparsities that only a chained method has."""
    seeds = len(panel.seeds)
    return _table("method", [series], panel.rest(series), lambda s, at: _mean(s.mean(at), seeds))


def comparison_rows(panel: Panel, reference: str) -> Rows:
    """Every method against the reference, over the seeds and sparsities that both have."""
    (base,) = (series.cells() for series in panel.series if series.label == reference)
    rows = [["method", "all", "wins", "ties", "losses", *percents(panel.levels)]]
    for series in panel.series:
        if series.label == reference or series.dense:
            continue
        # Accuracies have four decimals: what binary fractions add to a difference is no win.
        gaps = {at: round(v - base[at], 6) for at, v in series.cells().items() if at in base}
        signs = [(gap > 0) - (gap < 0) for gap in gaps.values()]
        counts = [str(signs.count(sign)) for sign in (1, 0, -1)] if gaps else ["-"] * 3
        parts = ([gap for at, gap in gaps.items() if at[1] == level] for level in panel.levels)
        rows.append([series.label, _gap(gaps.values()), *counts, *map(_gap, parts)])
    return rows


def _gap(gaps: Iterable[float]) -> str:
    """Mean and its standard error, signed."""
    mean = mean_of(gaps)
    if mean is None:
        return "-"
    error = "-" if mean.std is None else f"{mean.std / math.sqrt(mean.n):.2f}"
    return f"{mean.mean:+.2f} ± {error}"


def cost_rows(panel: Panel) -> Rows:
    """Passes over the training set that each level took, and the seconds of a whole run."""
    levels = sorted({level for series in panel.series for level in panel.expected(series)})

    def cell(series: Series, level: float) -> str:
        return _cost(series.passes(level)) if level in panel.expected(series) else ""

    head, *rows = _table("method", panel.series, levels, cell)
    costs = [_cost(series.seconds()) for series in panel.series]
    return [[*head, "seconds a run"], *([*row, c] for row, c in zip(rows, costs, strict=True))]


def _cost(mean: Mean | None) -> str:
    return "-" if mean is None else f"{mean.mean:.1f}".removesuffix(".0")


def size_rows(panel: Panel) -> Rows:
    """What each level keeps, computes for an image and takes when packed, means over the seeds."""
    means = _measured(panel, "rows", "kept", "macs", "packed_bytes")
    rows = [[series.label, f"{level:g} %", f"{kept:,.0f}", f"{macs:,.0f}", f"{size / 1024:,.1f}"]
            for series, level, (kept, macs, size) in means]  # fmt: skip
    return [["method", "sparsity", "weights", "multiply-adds", "KiB packed"], *rows]


def profile_rows(panel: Panel) -> Rows:
    """Size, arithmetic and time of the levels that --profile has measured, means over the seeds."""
    means = _measured(panel, "profiles", "bytes", "macs", "effective", "1", "32")
    rows = [[series.label, f"{level:g} %", _mean(series.mean(level), 0), f"{size / 1024:,.1f}",
             f"{macs:,.0f}", f"{effective:,.0f}", f"{one:.2f}", f"{many:.2f}"]
            for series, level, (size, macs, effective, one, many) in means]  # fmt: skip
    head = ["method", "sparsity", "accuracy", "KiB packed", "multiply-adds", "effective"]
    return [[*head, "ms for 1", "ms for 32"], *rows]


def _measured(panel: Panel, part: str, *names: str) -> Iterator[tuple[Series, float, list[float]]]:
    """Means over the seeds where a method's `rows` or `profiles` have all these numbers."""
    for series in panel.series:
        for level in sorted(series.levels):
            found = [getattr(run, part).get(level, {}) for run in series.runs]
            means = [mean_of(one.get(name) for one in found) for name in names]
            if all(means):
                yield series, level, [mean.mean for mean in means]


def paper_tables(panel: Panel) -> list[Rows]:
    """The paper's numbers for the methods of the panel; a chained one stands alone."""
    lines = [series for series in panel.series if series.paper()]
    groups = [[s for s in lines if not s.method.chained], *([s] for s in lines if s.method.chained)]

    def cell(series: Series, level: float) -> str:
        mean, std = series.paper().get(level, (None, None))
        return "" if mean is None else f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"

    return [_table("the paper's", group, sorted(set().union(*(s.paper() for s in group))), cell)
            for group in groups if group]  # fmt: skip


def markdown(rows: Rows) -> str:
    """A Markdown table; `**text**` is bold, all else is text."""
    # `plain` escapes the stars that make the best bold, too.
    bold = partial(re.sub, r"^\\\*\\\*([^*]+)\\\*\\\*$", r"**\1**")
    head, *rest = [[bold(plain(cell)) for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rest))


def plain(text: str) -> str:
    """A line of text so that Markdown, and the HTML made of it, show it and nothing else."""
    text = html.escape(MARKED.sub(r"\\\g<0>", text), quote=False)
    return text.replace("@", "@<!-- -->")  # no address, no name of an account


def latex(rows: Rows, caption: str) -> str:
    """A booktabs table; `**text**` is bold, a lone `-` a dash."""
    texts = [["--" if cell == "-" else cell.translate(LATEX) for cell in row] for row in rows]
    cells = [[re.sub(r"^\*\*([^*]+)\*\*$", r"\\textbf{\1}", text) for text in row] for row in texts]
    # Without the braces a row that begins with a bracket would belong to the line break before it.
    head, *rest = ["{}" + " & ".join(row) + r" \\" for row in cells]
    columns = "l" + "r" * (len(rows[0]) - 1)
    start = [r"\begin{table}", rf"\caption{{{caption.translate(LATEX)}}}"]
    start += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*start, *rest, r"\bottomrule", r"\end{tabular}", r"\end{table}"])
