"""Tables and pictures of finished runs.

python -m utils.report RUNS... --out DIR  compare: report.md, table.csv, table.tex and
                                          accuracy_vs_sparsity.png in DIR
python -m utils.report seeds RUNS...      mean and standard deviation over seeds, on the terminal
python -m utils.report table RUN...       each run: every sparsity, under the dense network's line
RUNS are run folders, folders that hold runs, results.csv files, or logs whose last RESULT line
names a run.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from report.panel import Panel, panels
from report.records import load_records
from report.tables import aligned
from report.text import report_csv, report_markdown, report_tex
from runfolder.results import Row, find_dense, read_results, run_folder, sparsity
from utils.config import Parser
from utils.errors import UsageError, VPNsError
from utils.files import atomic_write

PICTURE = "accuracy_vs_sparsity.png"


def curves_table(rows: Sequence[Row], dense_row: Row | None) -> str:
    """One run as aligned text: sparsity asked for, real sparsity and accuracies, all in percent."""
    cells = [("sparsity", "real", "clean", "prompted")]
    if dense_row is not None:
        cells.append(("dense", *_accuracies(dense_row)))
    cells += [(f"{sparsity(row['density']):g}", *_accuracies(row)) for row in rows]
    return aligned(cells)


def _accuracies(row: Row) -> tuple[str, ...]:
    real = row["real_density"]
    shown = (None if real is None else sparsity(real), row["clean"], row["prompted"])
    return tuple("-" if value is None else f"{value:.2f}" for value in shown)


def seeds_table(runs: Iterable[Path]) -> str:
    """Mean and sample standard deviation of the accuracies over the seeds of each method."""
    return summary_table(panels(load_records(runs)[0]))


def summary_table(shown: Sequence[Panel]) -> str:
    """Aligned text, a row a method and sparsity; - is missing."""
    cells = [("run", "sparsity", "clean", "prompted", "seeds")]
    for panel in shown:
        for label in panel.labels:
            cells += [_summary_row(panel, label, level) for level in panel.expected(label)]
    return aligned(cells)


def _summary_row(panel: Panel, label: str, level: float) -> tuple[str, ...]:
    clean = panel.summary(label, level, "clean")
    prompted = panel.summary(label, level, "prompted") if panel.prompted(label) else None
    texts = []
    for summary in (clean, prompted):
        std = "" if summary is None or summary.std is None else f" +- {summary.std:.2f}"
        texts.append("-" if summary is None else f"{summary.mean:.2f}{std}")
    seeds = str(clean.n) if clean else "0"
    return ("-".join((*panel.where, label)), f"{level:g}", *texts, seeds)


def write_report(runs: Sequence[Path], out: Path, options: Any) -> str:
    """Write the four files into `out`; the same runs give the same bytes. Returns the summary.

    `options` has reference (a label or None), paper (whether to show its numbers) and accuracy.
    Raises VPNsError, UsageError for a reference that is not there.
    """
    from report.panel_plots import comparison_figure
    from runfolder.plots import save_figure

    records, notes = load_records(runs)
    shown = panels(records, options.accuracy)
    text = report_markdown(shown, pick_reference(shown, options.reference), notes, options.paper)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot make {out} ({error.strerror}): choose another folder with --out"
        raise VPNsError(reason) from error
    atomic_write(out / "report.md", text)
    atomic_write(out / "table.csv", report_csv(shown))
    atomic_write(out / "table.tex", report_tex(shown))
    save_figure(comparison_figure(shown, options.paper), out / PICTURE)
    return summary_table(shown)


def pick_reference(shown: Sequence[Panel], wanted: str | None) -> str:
    """The label that others are compared with: the one asked for, vpns, or the first there is."""
    labels = list(dict.fromkeys(label for panel in shown for label in panel.labels))
    if wanted is not None and wanted not in labels:
        raise UsageError(f"--reference {wanted!r} is none of the methods: {'; '.join(labels)}")
    plain = [label for label in labels if label == "vpns" or label.startswith("vpns,")]
    return wanted or min(plain or labels, key=lambda label: label != "vpns")


def _describe(run: Path) -> str:
    """The table of one run, and where its files are."""
    lines = [curves_table(read_results(run), find_dense(run)), f"run:    {run}"]
    curves = run / "curves.png"
    return "\n".join(lines + ([f"curves: {curves}"] if curves.exists() else []))


def _parser() -> Parser:
    parser = Parser(prog="python -m utils.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the report's files")
    parser.add_argument(
        "--reference", metavar="METHOD", help="what the others are compared with (default: vpns)"
    )
    parser.add_argument(
        "--accuracy", choices=("clean", "prompted"), default="clean",
        help="what is compared and drawn; methods that never prompt count as clean "
        "(default: clean, the paper's protocol)",
    )  # fmt: skip
    parser.add_argument(
        "--no-paper", "--no_paper", dest="paper", action="store_false",
        help="leave out the paper's published numbers",
    )  # fmt: skip
    return parser


def run(argv: Sequence[str]) -> str:
    """Do what the command line says; returns what to print."""
    if argv[:1] in (["seeds"], ["table"]):
        paths = [Path(word) for word in argv[1:]]
        if not paths:
            raise UsageError(f"{argv[0]} needs at least one run")
        if argv[0] == "seeds":
            return seeds_table(paths)
        return "\n\n".join(_describe(run_folder(path)) for path in paths)
    options = _parser().parse_args(argv)
    if options.out is None:
        raise UsageError("--out DIR is missing: the folder that the report goes to")
    table = write_report(options.runs, options.out, options)
    return f"{table}\n\nreport: {options.out / 'report.md'}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line above; returns the exit code."""
    try:
        print(run(sys.argv[1:] if argv is None else argv))
    except VPNsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


