"""Tables and pictures of finished runs.

python -m utils.report RUNS... --out DIR  compare: report.md, table.csv, table.tex and
                                          accuracy_vs_sparsity.png in DIR
python -m utils.report table RUN...       each run: every sparsity, under the dense network's line
RUNS are run folders, folders that hold runs, results.csv files, or logs whose last RESULT line
names a run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from program.failures import one_line
from runfolder.results import PICTURE, Row, find_dense, read_results, run_folder, sparsity
from utils.config import Parser, path_or_word
from utils.errors import Interrupted, UsageError, printable
from utils.signals import Stop


def curves_table(rows: Sequence[Row], dense_row: Row | None) -> str:
    """One run as aligned text: sparsity asked for, real sparsity and accuracies, all in percent."""
    cells = [("sparsity", "real", "clean", "prompted")]
    for row in [dense_row, *rows] if dense_row else rows:
        name = "dense" if row is dense_row else f"{sparsity(row['density']):g}"
        real = None if row["real_density"] is None else sparsity(row["real_density"])
        numbers = (real, row["clean"], row["prompted"])
        cells.append((name, *("-" if value is None else f"{value:.2f}" for value in numbers)))
    return aligned(cells)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart: the first to the left, the others to the right."""
    first, *rest = (max(map(len, column)) for column in zip(*rows, strict=True))
    line = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in rest)])
    return "\n".join(line.format(*row).rstrip() for row in rows)


def _describe(run: Path) -> str:
    """The table of one run, and where its files are."""
    lines = [curves_table(read_results(run), find_dense(run)), f"run:    {printable(run)}"]
    if (run / PICTURE).exists():
        lines.append(f"curves: {printable(run / PICTURE)}")
    return "\n".join(lines)


def run(argv: Sequence[str]) -> str:
    """Do what the command line says; returns what to print."""
    if argv[:1] == ["table"]:
        if not argv[1:]:
            raise UsageError("table needs at least one run")
        return "\n\n".join(_describe(run_folder(Path(word))) for word in argv[1:])
    parser = Parser(prog="python -m utils.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=path_or_word, metavar="RUNS")
    parser.add_argument("--out", type=path_or_word, metavar="DIR",
                        help="folder for the report's files")
    parser.add_argument("--reference", metavar="METHOD",
                        help="what the others are compared with (default: vpns)")
    parser.add_argument("--accuracy", choices=("clean", "prompted"), default="clean",
                        help="what is compared and drawn; methods that never prompt count as clean "
                        "(default: clean, the paper's protocol)")
    parser.add_argument("--no-paper", "--no_paper", dest="paper", action="store_false",
                        help="leave out the paper's published numbers")
    options = parser.parse_args(argv)
    if options.out is None:
        raise UsageError("--out DIR is missing: the folder that the report goes to")
    from report.text import write_report  # needs torch, for which the table does not wait

    options.out, options.runs = Path(options.out), list(map(Path, options.runs))
    return f"{write_report(**vars(options))}\n\nreport: {options.out / 'report.md'}"


def main(argv: Sequence[str]) -> int:
    """The command line above; returns the exit code. A signal ends it with one line, too."""
    stop = Stop()
    stop.install()
    try:
        print(run(argv))
        stop.ignore()
    except (Exception, Interrupted) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    return 0
