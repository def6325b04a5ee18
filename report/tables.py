"""Rows of text cells, the head first, as tables: aligned for a terminal, Markdown, LaTeX."""

import re
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def aligned(rows: Rows) -> str:
    """Columns two spaces apart: the first to the left, the others to the right."""
    first, *rest = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for label, *cells in rows:
        words = [f"{cell:>{width}}" for cell, width in zip(cells, rest, strict=True)]
        lines.append("  ".join([f"{label:<{first}}", *words]).rstrip())
    return "\n".join(lines)


def markdown(rows: Rows, title: str = "") -> str:
    """A Markdown table under its title; `|` in a cell is escaped."""
    head, *rest = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rest)]
    return "\n".join([title, "", *lines] if title else lines)


def latex(rows: Rows, caption: str) -> str:
    """A booktabs table; `**text**` is bold, a lone `-` a dash."""
    cells = [["--" if cell == "-" else _latex(cell) for cell in row] for row in rows]
    head, *rest = [" & ".join(row) + r" \\" for row in cells]
    columns = "l" + "r" * (len(rows[0]) - 1)
    return "\n".join([
        r"\begin{table}", rf"\caption{{{_latex(caption)}}}", rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule", head, r"\midrule", *rest, r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ])  # fmt: skip


def _latex(text: str) -> str:
    text = re.sub(r"([%&#_$])", r"\\\1", text).replace("±", r"$\pm$")
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
