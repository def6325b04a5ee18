"""Pictures of results. Matplotlib is imported where it is used: it takes a second or two."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runfolder.results import Row, find_dense, read_results, sparsity
from utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    title = f"{run.parent.name}, {run.name}"
    save_figure(curves_figure(read_results(run), find_dense(run), title), run / "curves.png")


def curves_figure(rows: Sequence[Row], dense_row: Row | None, title: str) -> "Figure":
    """Accuracy (%) against sparsity (%): clean solid, prompted dashed, dense a dotted line.

    `rows` and `dense_row` are rows of results.csv (see `read_results`); without a dense row there
    is no dense line, and a column without values has none.
    """
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
