"""Tables of text cells: aligned for a terminal, Markdown, LaTeX, comma-separated."""

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

BOLD = re.compile(r"\*\*(.+?)\*\*")
LATEX_SPECIAL = re.compile(r"([%&#_$])")


class Table(NamedTuple):
    """A title, which may be empty, and rows of text; the first row is the head."""

    title: str
    rows: Sequence[Sequence[str]]


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *rest in cells:
        words = [f"{text:>{width}}" for text, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *words]).rstrip())
    return "\n".join(lines)


def markdown(table: Table) -> str:
    """A Markdown table under its title; `|` in a cell is escaped."""
    head, *rows = [[cell.replace("|", r"\|") for cell in row] for row in table.rows]
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    return "\n".join([table.title, "", *lines] if table.title else lines)


def latex(table: Table) -> str:
    """A booktabs table with the title as its caption; `**text**` is bold, a lone `-` a dash."""
    head, *rows = [[_latex_cell(cell) for cell in row] for row in table.rows]
    return "\n".join([
        r"\begin{table}",
        rf"\caption{{{_escaped(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        _latex_row(head),
        r"\midrule",
        *map(_latex_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ])  # fmt: skip


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(text: str) -> str:
    return "--" if text == "-" else BOLD.sub(r"\\textbf{\1}", _escaped(text))


def _escaped(text: str) -> str:
    return LATEX_SPECIAL.sub(r"\\\1", text).replace("±", r"$\pm$")


def comma_separated(rows: Sequence[Sequence[str]]) -> str:
    """CSV text, quoted where needed, lines ended by a newline."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
