"""Finished runs: their results.csv, the dense run that belongs to them, and their picture.

Matplotlib is imported where it is used: it takes a second or two.
"""

import csv
import glob
import io
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import VPNsError, printable
from utils.files import (
    SMALL,
    atomic_write,
    below,
    parse_object,
    read_object,
    read_small,
    require_amounts,
    size_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
PICTURE = "curves.png"
TITLE = 120  # characters
CONFUSIONS = "confusion.csv"
MOST_CONFUSIONS = 2**26  # bytes
TICKS = 40  # classes that have room for their names
HEAD = ("network", "dataset", "method", "seed")  # columns before the numbers of a level
PERCENT = ("before", "after_search", "clean", "prompted")  # columns
ROWS, COLUMNS = 200, 50  # of a results.csv at most, the densities of one run
RUN_FILES = ("results.csv", "config.json")  # each marks a run folder


def sparsity(density: float) -> float:
    """A density in (0, 1] as the percentage of weights removed, free of binary dust (0.2 is 80)."""
    return round(100 * (1 - density), 6)


def read_results(run: Path) -> list[Row]:
    """The rows of results.csv, None where a cell is empty. Raises VPNsError for a bad file."""
    try:
        text = read_small(run / "results.csv").decode()
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if len(reader.fieldnames or ()) > COLUMNS:
            raise ValueError("columns that no run has")
        rows = list(islice(reader, ROWS + 1))  # a row fills up what it lacks
        if len(rows) > ROWS:
            raise ValueError("densities that no run has")
        return [_numbers(row) for row in rows]
    except OSError as error:
        raise VPNsError(f"{run} has no readable results.csv: name a finished run") from error
    except (TypeError, ValueError, csv.Error) as error:
        raise VPNsError(f"{run / 'results.csv'} is damaged: run the same command again") from error


def _numbers(texts: dict[str, str]) -> Row:
    """Raises ValueError or TypeError when something is no number, or a needed one is missing."""
    row: Row = dict.fromkeys(("real_density", "prompted", "density", "clean"))
    row |= {name: None if text == "" else float(text) for name, text in texts.items()
            if name not in HEAD}  # fmt: skip
    there = [name for name, value in row.items() if value is not None]
    require_amounts(row, *there, "density", "clean")
    require_amounts(row, *(name for name in there if name in PERCENT), most=100)
    if not 0 < row["density"] <= 1:
        raise ValueError("no density")
    return row


def find_dense(run: Path) -> Row | None:
    """The row of the finished dense run of the same experiment, network, dataset and seed.

    Among several, the one whose config.json agrees best with the run's, then the newest. None if
    there is none, or if `run` is itself a dense run.
    """
    family, _, method = run.parent.name.rpartition("-")
    seed = run.name.partition("-")[0]
    beside = (run.parent.parent / f"{family}-dense").glob(f"{glob.escape(seed)}-*")
    finished = [dense for dense in beside if read_object(dense / "run.json").get("state") == "done"]
    if method == "dense" or not finished:
        return None
    config = read_object(run / "config.json").items()

    def fit(dense: Path) -> tuple[int, float]:
        other = read_object(dense / "config.json")
        agreeing = sum(name in other and other[name] == value for name, value in config)
        return agreeing, (dense / "run.json").stat().st_mtime

    with suppress(VPNsError):  # somebody's damaged run does not end this one
        return next(iter(read_results(max(finished, key=fit))), None)
    return None


def find_runs(path: Path) -> list[Path]:
    """The runs that `path` means: a run folder, all below a folder, a results.csv, or a log.

    Runs that were set aside (`.old1`) count only when they are named. Raises VPNsError when there
    is no run.
    """
    if path.name == "results.csv":
        return [path.parent]
    if not path.is_dir() or any((path / name).exists() for name in RUN_FILES):
        return [run_folder(path)]
    folders = {file.parent for file in below(path) if file.name in RUN_FILES}
    runs = sorted(folder for folder in folders if ".old" not in folder.name)
    if not runs:
        raise VPNsError(f"{path} has no readable results.csv: name a finished run")
    return runs


def run_folder(path: Path) -> Path:
    """A run folder as it is, or the one that a log's last RESULT line names, else VPNsError."""
    if path.is_dir():
        return path
    try:
        start = max(0, size_of(path) - SMALL)  # a log may be long
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read(SMALL).decode(errors="replace")
        result = [line for line in text.splitlines() if line.startswith("RESULT ")][-1]
        folder = Path(parse_object(result.removeprefix("RESULT "))["run"])
        there = folder.is_dir()
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise VPNsError(f"{path} is neither a run folder nor the log of a finished run") from error
    if not there:
        raise VPNsError(f"{path} names the run {folder}, which is not here: name its folder")
    return folder


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, on which a `$` in a name begins no formula."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, the same bytes each time. Raises VPNsError when it cannot."""
    image = io.BytesIO()
    # Matplotlib would stamp its version into the file.
    figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
    atomic_write(path, image.getvalue())


def draw_run(run: Path) -> None:
    """Draw what a run has found: `curves.png`, with its dense line if there is one; confusions."""
    title = printable(f"{run.parent.name}, {run.name}", TITLE)
    save_figure(curves_figure(read_results(run), find_dense(run), title), run / PICTURE)
    for table in run.glob(f"d*/{CONFUSIONS}"):
        if not table.with_suffix(".png").exists():
            draw_confusions(table)


def draw_confusions(table: Path) -> None:
    """Draw a confusion.csv beside it: true class down, guessed class across, shares as shades."""
    head, *rows = csv.reader(io.StringIO(read_small(table, MOST_CONFUSIONS).decode()))
    counts = [list(map(int, row[1:])) for row in rows]
    shares = [[100 * count / max(sum(row), 1) for count in row] for row in counts]
    figure = new_figure(6.4, 5.6)
    axes = figure.add_subplot(xlabel="taken for", ylabel="is")
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=100), label="% of the class")
    if len(rows) <= TICKS:
        texts = [printable(name, 20) for name in head[1:]]
        axes.set_xticks(range(len(rows)), texts, rotation=90)
        axes.set_yticks(range(len(rows)), texts)
    save_figure(figure, table.with_suffix(".png"))


def curves_figure(rows: Sequence[Row], dense_row: Row | None, title: str) -> "Figure":
    """Accuracy (%) against sparsity (%): clean solid, prompted dashed, dense a dotted line."""
    figure = new_figure(6.4, 4.4)
    axes = figure.add_subplot()
    looks = {"clean": ("-", "o", "tab:blue"), "prompted": ("--", "s", "tab:orange")}
    for column, (line, marker, color) in looks.items():
        cells = ((sparsity(row["density"]), row[column]) for row in rows)
        points = sorted(cell for cell in cells if cell[1] is not None)
        if points:
            look = {"linestyle": line, "marker": marker, "color": color}
            axes.plot(*zip(*points, strict=True), label=column, **look)
    if dense_row is not None:
        label = f"dense, clean ({dense_row['clean']:.2f})"
        axes.axhline(dense_row["clean"], linestyle=":", color="black", label=label)
    axes.set(title=title, xlabel="sparsity (% of weights removed)", ylabel="test accuracy (%)")
    levels = sorted({sparsity(row["density"]) for row in rows})
    if 0 < len(levels) <= 8:
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.grid(alpha=0.3)
    if axes.get_lines():
        axes.legend()
    return figure
