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
from typing import TYPE_CHECKING

from report.tables import aligned
from runfolder.results import Row, find_dense, read_results, run_folder, sparsity
from utils.config import Parser
from utils.errors import UsageError, VPNsError
from utils.files import atomic_write

if TYPE_CHECKING:  # the methods need torch, for which the table of one run does not wait
    from report.panel import Panel


def curves_table(rows: Sequence[Row], dense_row: Row | None) -> str:
    """One run as aligned text: sparsity asked for, real sparsity and accuracies, all in percent."""
    lines = [] if dense_row is None else [("dense", dense_row)]
    lines += [(f"{sparsity(row['density']):g}", row) for row in rows]
    cells = [("sparsity", "real", "clean", "prompted")]
    for name, row in lines:
        real = None if row["real_density"] is None else sparsity(row["real_density"])
        numbers = (real, row["clean"], row["prompted"])
        cells.append((name, *("-" if value is None else f"{value:.2f}" for value in numbers)))
    return aligned(cells)


def seeds_table(runs: Iterable[Path]) -> str:
    """Mean and sample standard deviation of the accuracies over the seeds of each method."""
    from report.panel import panels
    from report.runs import load_runs

    return summary_table(panels(load_runs(runs)[0]))


def summary_table(panels: Sequence["Panel"]) -> str:
    """Aligned text, a row a method and sparsity; - is missing."""
    cells = [("run", "sparsity", "clean", "prompted", "seeds")]
    for panel in panels:
        for series in panel.series:
            for level in panel.expected(series):
                clean = series.mean(level, "clean")
                prompted = series.mean(level, "prompted") if series.prompted else None
                texts = []
                for mean in (clean, prompted):
                    std = "" if mean is None or mean.std is None else f" +- {mean.std:.2f}"
                    texts.append("-" if mean is None else f"{mean.mean:.2f}{std}")
                name = "-".join((*panel.where, series.label))
                cells.append((name, f"{level:g}", *texts, str(clean.n if clean else 0)))
    return aligned(cells)


def write_report(
    runs: Sequence[Path], out: Path, reference: str | None, accuracy: str, paper: bool
) -> str:
    """Write the four files into `out`; the same runs give the same bytes. Returns the summary.

    Raises VPNsError, UsageError for a reference that is not there.
    """
    from report.panel import panels
    from report.picture import comparison_figure
    from report.runs import load_runs
    from report.text import report_csv, report_markdown, report_tex
    from runfolder.plots import save_figure

    loaded, notes = load_runs(runs)
    groups = panels(loaded, accuracy)
    text = report_markdown(groups, pick_reference(groups, reference), notes, paper)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot make {out} ({error.strerror}): choose another folder with --out"
        raise VPNsError(reason) from error
    atomic_write(out / "report.md", text)
    atomic_write(out / "table.csv", report_csv(groups))
    atomic_write(out / "table.tex", report_tex(groups))
    save_figure(comparison_figure(groups, paper), out / "accuracy_vs_sparsity.png")
    return summary_table(groups)


def pick_reference(panels: Sequence["Panel"], wanted: str | None) -> str:
    """The label that others are compared with: the one asked for, vpns, or the first there is."""
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
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
    command, paths = argv[:1], [Path(word) for word in argv[1:]]
    if command in (["seeds"], ["table"]):
        if not paths:
            raise UsageError(f"{argv[0]} needs at least one run")
        if command == ["seeds"]:
            return seeds_table(paths)
        return "\n\n".join(_describe(run_folder(path)) for path in paths)
    options = _parser().parse_args(argv)
    if options.out is None:
        raise UsageError("--out DIR is missing: the folder that the report goes to")
    return f"{write_report(**vars(options))}\n\nreport: {options.out / 'report.md'}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line above; returns the exit code."""
    try:
        print(run(sys.argv[1:] if argv is None else argv))
    except VPNsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
