"""Pictures of results. Matplotlib is imported where it is used: it takes a second or two."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runfolder.results import Row, find_dense, read_results, sparsity
from utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curves(rows: Sequence[Row], dense_row: Row | None, path: Path, title: str) -> None:
    """Write `path`, a PNG of accuracy against sparsity; the same rows give the same bytes.

    `rows` and `dense_row` are rows of results.csv (see `read_results`); without a dense row there
    is no dense line. Raises VPNsError when the file cannot be written.
    """
    save_figure(curves_figure(rows, dense_row, title), path)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, the same bytes each time. Raises VPNsError when it cannot."""
    image = io.BytesIO()
    # Matplotlib would stamp its version into the file.
    figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
    atomic_write(path, image.getvalue())


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_run(run: Path) -> None:
    """Write `curves.png` of a run from its results.csv, with its dense line if there is one."""
    family = run.parent.name
    draw_curves(read_results(run), find_dense(run), run / "curves.png", f"{family}, {run.name}")


def curves_figure(rows: Sequence[Row], dense_row: Row | None, title: str) -> "Figure":
    """Accuracy (%) against sparsity (%): clean solid, prompted dashed, dense a dotted line."""
    figure = new_figure(6.4, 4.4)
    axes = figure.add_subplot()
    add_line(axes, rows, "clean", linestyle="-", marker="o", color="tab:blue")
    add_line(axes, rows, "prompted", linestyle="--", marker="s", color="tab:orange")
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


def add_line(axes: "Axes", rows: Sequence[Row], column: str, **style: Any) -> None:
    """Draw one column of `rows` in the order of sparsity; a column without values draws nothing."""
    shown = [row for row in rows if row[column] is not None]
    points = sorted((sparsity(row["density"]), row[column]) for row in shown)
    if points:
        axes.plot(*zip(*points, strict=True), label=column, **style)
