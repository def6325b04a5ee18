"""The text files of a report: report.md, table.csv and table.tex."""

from collections.abc import Sequence

from report import csv_rows as csv
from report.commands import commands_and_machines
from report.contents import (
    accuracy_table,
    comparison_table,
    cost_table,
    own_tables,
    paper_tables,
    percents,
    seed_list,
)
from report.panel import Panel
from report.tables import comma_separated, latex, markdown

INTRODUCTION = """# Accuracy against sparsity

![Accuracy against sparsity](accuracy_vs_sparsity.png)

Test accuracy in percent, mean ± sample standard deviation over the seeds; `(n=...)` where seeds are
missing, `-` where a cell is missing, empty where a method has no such cell. Without the prompt
unless said otherwise. The best mean of a column is bold."""
COMPARED = """Differences in points, {accuracy} accuracy, over the seeds and sparsities that both
have: all together with wins, ties and losses, then sparsity by sparsity, each mean with its
standard error. The pairs count as independent, which those of one seed are not quite; the error
over all sparsities holds their differences, too."""
COST = """Forward and backward passes over the training set for each sparsity, and seconds of a
whole run with all its sparsities. What runs share costs each the passes, and one the time."""


def report_markdown(
    shown: Sequence[Panel], reference: str, notes: Sequence[str], paper: bool
) -> str:
    """The whole of report.md."""
    parts = [INTRODUCTION]
    for panel in shown:
        parts += _panel_parts(panel, reference, paper)
    parts += commands_and_machines(shown)
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _panel_parts(panel: Panel, reference: str, paper: bool) -> list[str]:
    parts = [f"## {panel.title}, {seed_list(panel)}"]
    parts.append(markdown(accuracy_table(panel, "clean")._replace(title="")))
    parts += [markdown(table) for table in own_tables(panel)]
    if any(map(panel.prompted, panel.labels)):
        table = accuracy_table(panel, "prompted")._replace(title="With the prompt on test images:")
        parts.append(markdown(table))
    parts += _comparison(panel, reference)
    parts += ["### Cost", COST, markdown(cost_table(panel))]
    tables = paper_tables(panel) if paper else []
    if tables:
        parts += ["### The paper's numbers", *map(markdown, tables)]
    return parts + _gaps(panel)


def _comparison(panel: Panel, reference: str) -> list[str]:
    title = f"### Compared with {reference}"
    if reference not in panel.labels:
        return [title, f"No run of {reference} here."]
    table = comparison_table(panel, reference)
    if len(table.rows) < 2:
        return []
    return [title, COMPARED.format(accuracy=panel.accuracy), markdown(table)]


def _gaps(panel: Panel) -> list[str]:
    """What has no result, and which runs have not come to their end."""
    lines = [
        f"- {label}, seed {seed}: {', '.join(percents(levels))}"
        for label, seed, levels in panel.missing()
    ]
    for record in panel.records:
        state = record.run.get("state", "done")
        if state != "done":
            reason = record.run.get("reason")
            lines.append(f"- {record.name} is {state}" + (f": {reason}" if reason else ""))
    return ["### Missing", "\n".join(lines)] if lines else []


def report_csv(shown: Sequence[Panel]) -> str:
    """table.csv."""
    return comma_separated([csv.COLUMNS, *(row for panel in shown for row in csv.csv_rows(panel))])


def report_tex(shown: Sequence[Panel]) -> str:
    """table.tex: a table a panel, and one with the prompt where there is any."""
    tables = [accuracy_table(panel, "clean") for panel in shown]
    for panel in shown:
        if any(map(panel.prompted, panel.labels)):
            tables.append(accuracy_table(panel, "prompted"))
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(map(latex, tables)) + "\n"
