"""The files of a report: report.md, table.csv, table.tex and the picture."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from report import aligned, tables
from report.commands import commands_and_machines
from report.panel import Panel, Series, panels
from report.runs import load_runs
from runfolder.results import save_figure
from utils.errors import UsageError, VPNsError, optional
from utils.files import atomic_write, csv_text

INTRODUCTION = """# Accuracy against sparsity

![Accuracy against sparsity](accuracy_vs_sparsity.png)

Test accuracy in percent, mean ± sample standard deviation over the seeds; `(n=...)` where seeds are
missing, `-` where a cell is missing, empty where a method has no such cell. Without the prompt
unless said otherwise. The best mean of a column is bold."""
COMPARED = """Differences in points, {accuracy} accuracy, over the seeds and sparsities that both
have: all together with wins, ties and losses, then sparsity by sparsity, each mean with its
standard error. The pairs count as independent, which those of one seed are not quite; the error
over all sparsities holds their differences, too."""
SIZE = """Weights that stay, their multiply-adds for one clean image, and the size of all tensors
when packed without loss."""
IN_USE = ("Of the networks that `--profile` has measured: effective multiply-adds leave out pruned "
          "weights; times are those of the fastest of eager torch, torch.compile and ONNX Runtime.")
COST = """Forward and backward passes over the training set for each sparsity, and seconds of a
whole run with all its sparsities. What runs share costs each the passes, and one the time; of the
dense network of `--from_dense` and `--distill`, a run of its own, the time alone."""
CSV_HEAD = ("network,dataset,method,sparsity,seeds,n,clean_mean,clean_std,prompted_mean,"
            "prompted_std,passes,seconds_a_run,paper,paper_std\n")  # fmt: skip


def write_report(
    runs: Sequence[Path], out: Path, reference: str | None, accuracy: str, paper: bool
) -> str:
    """Write the four files, the same bytes for the same runs; returns the summary."""
    records, notes = load_runs(runs)
    groups = panels(records, accuracy)
    text = report_markdown(groups, pick_reference(groups, reference), notes, paper)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot make {out} ({error.strerror}): choose another folder with --out"
        raise VPNsError(reason) from error
    atomic_write(out / "report.md", text)
    atomic_write(out / "table.csv", report_csv(groups))
    atomic_write(out / "table.tex", report_tex(groups))
    with optional("picture"):
        from report.picture import comparison_figure  # Matplotlib needs a folder for its cache

        save_figure(comparison_figure(groups, paper), out / "accuracy_vs_sparsity.png")
    return summary_table(groups)


def pick_reference(panels: Sequence[Panel], name: str | None) -> str:
    """The label that others are compared with: the one asked for, vpns, or the first there is."""
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    if name is not None and name not in labels:
        raise UsageError(f"--reference {name!r} is none of the methods: {'; '.join(labels)}")
    return name or min(labels, key=lambda one: (one != "vpns", not one.startswith("vpns,")))


def _cells(panels: Sequence[Panel]) -> Iterator[tuple[Panel, Series, float]]:
    """Every method and sparsity of every panel."""
    for panel in panels:
        for series in panel.series:
            yield from product([panel], [series], panel.expected(series))


def summary_table(panels: Sequence[Panel]) -> str:
    """Aligned text, a row a method and sparsity; - is missing."""
    cells = [("run", "sparsity", "clean", "prompted", "seeds")]
    for panel, series, level in _cells(panels):
        clean, prompted = (series.mean(level, column) for column in ("clean", "prompted"))
        texts = ["-" if mean is None else f"{mean.mean:.2f}" if mean.std is None else
                 f"{mean.mean:.2f} +- {mean.std:.2f}" for mean in (clean, prompted)]  # fmt: skip
        name = "-".join((*panel.where, series.label))
        cells.append((name, f"{level:g}", *texts, str(clean.n if clean else 0)))
    return aligned(cells)


def report_markdown(panels: Sequence[Panel], reference: str, notes: list[str], paper: bool) -> str:
    """The whole of report.md."""
    parts = [INTRODUCTION, *(p for panel in panels for p in _panel_parts(panel, reference, paper))]
    parts += commands_and_machines([run for panel in panels for run in panel.runs])
    if notes:
        parts += ["## Notes", "\n".join(f"- {tables.plain(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _panel_parts(panel: Panel, reference: str, paper: bool) -> list[str]:
    parts = [f"## {tables.plain(panel.title)}, {_seeds(panel)}",
             tables.markdown(tables.accuracy_rows(panel, "clean"))]  # fmt: skip
    for series in filter(panel.rest, panel.series):
        parts += [f"{tables.plain(series.label)} at sparsities of its own:",
                  tables.markdown(tables.rest_rows(panel, series))]  # fmt: skip
    if panel.prompted:
        parts += ["With the prompt on test images:",
                  tables.markdown(tables.accuracy_rows(panel, "prompted"))]  # fmt: skip
    title = f"### Compared with {tables.plain(reference)}"
    if all(series.label != reference for series in panel.series):
        parts += [title, f"No run of {tables.plain(reference)} here."]
    elif len(rows := tables.comparison_rows(panel, reference)) > 1:
        text = COMPARED.format(accuracy=panel.series[0].accuracy)
        parts += [title, text, tables.markdown(rows)]
    parts += ["### Cost", COST, tables.markdown(tables.cost_rows(panel))]
    if len(rows := tables.size_rows(panel)) > 1:
        parts += ["### Size", SIZE, tables.markdown(rows)]
    if len(rows := tables.profile_rows(panel)) > 1:
        parts += ["### In use", IN_USE, tables.markdown(rows)]
    if paper and (published := tables.paper_tables(panel)):
        parts += ["### The paper's numbers", *map(tables.markdown, published)]
    lines = _missing(panel)
    return parts + (["### Missing", "\n".join(lines)] if lines else [])


def _seeds(panel: Panel) -> str:
    """`seed 7` or `seeds 7, 9, 17`."""
    return f"seed{'s' * (len(panel.seeds) > 1)} {', '.join(map(str, panel.seeds))}"


def _missing(panel: Panel) -> list[str]:
    """The cells without a result, and the runs that have not come to their end."""
    lines = []
    for series, seed in product(panel.series, panel.seeds):
        if levels := [at for at in panel.expected(series) if (seed, at) not in series.cells()]:
            lines.append(f"{series.label}, seed {seed}: {', '.join(tables.percents(levels))}")
    for run in panel.runs:
        if run.record["state"] != "done":
            reason = run.record.get("reason")
            lines.append(f"{run.name} is {run.record['state']}{reason and f': {reason}' or ''}")
    return [f"- {tables.plain(line)}" for line in lines]


def report_csv(panels: Sequence[Panel]) -> str:
    """table.csv: at most four decimals, a row a method and sparsity; a missing cell has n = 0."""
    rows, nothing = [], (None, None)
    for panel, series, level in _cells(panels):
        seeds = [str(seed) for seed, at in series.cells() if at == level]
        clean, prompted = ((series.mean(level, c) or nothing)[:2] for c in ("clean", "prompted"))
        costs = [(mean or nothing)[0] for mean in (series.passes(level), series.seconds())]
        numbers = [*clean, *prompted, *costs, *series.paper().get(level, nothing)]
        texts = ("" if n is None else f"{n:.4f}".rstrip("0").rstrip(".") for n in numbers)
        names = (*panel.where, series.label, f"{level:g}", " ".join(seeds))
        rows.append([*names, len(seeds), *texts])
    return CSV_HEAD + csv_text(rows)


def report_tex(panels: Sequence[Panel]) -> str:
    """table.tex: a table a panel, and one with the prompt where there is any."""
    texts = []
    for (accuracy, word), panel in product((("clean", "without"), ("prompted", "with")), panels):
        if accuracy == "clean" or panel.prompted:
            what = f"test accuracy (%) {word} the prompt by sparsity"
            title = f"{panel.title}: {what}, {_seeds(panel)}"
            texts.append(tables.latex(tables.accuracy_rows(panel, accuracy), title))
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(texts) + "\n"
