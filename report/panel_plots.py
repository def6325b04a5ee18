"""The picture of a comparison: accuracy against sparsity, a panel a network and dataset."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from report.panel import Panel
from report.sparsity_axis import name_sparsities
from runfolder.plots import new_figure
from runfolder.results import DENSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Paul Tol's qualitative "muted" colours, which differ for colour-blind readers too; the markers
# carry the same information.
STYLES = {
    "dense": ("#000000", ""),
    "vpns": ("#AA3377", "o"),
    "hydra": ("#332288", "s"),
    "bip": ("#56B4E9", "^"),
    "lth": ("#117733", "D"),
    "omp": ("#E69F00", "v"),
    "grasp": ("#44AA99", "P"),
    "snip": ("#CC6677", "X"),
    "synflow": ("#999933", "<"),
    "random": ("#888888", ">"),
}
OTHERS = (("#661100", "h"), ("#6699CC", "p"), ("#882255", "*"), ("#DDCC77", "d"))
VARIANTS = ("-", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)))
COLUMNS = 3


def comparison_figure(panels: Sequence[Panel], paper: bool) -> "Figure":
    """All panels under one legend; solid with a band of one standard deviation: ours.

    With `paper` the paper's curves stand dashed in the colour of their method.
    """
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    styles = _styles(panels)
    figure = new_figure(max(6.4, 4.6 * columns), 3.6 * rows + 0.24 * -(-len(styles) // 2) + 0.5)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, panel, styles, paper)
        if number % columns == 0:
            axes.set_ylabel("test accuracy (%)")
        if number + columns >= len(panels):
            axes.set_xlabel("sparsity (% of weights removed)")
    _add_legend(figure, styles, columns)
    return figure


def _styles(panels: Sequence[Panel]) -> dict[str, dict[str, Any]]:
    """How each label is drawn, in the order of the legend; fixed for the methods we know."""
    methods = {label: panel.method(label) for panel in panels for label in panel.labels}
    ordered = [name for name in STYLES if name in methods.values()]
    others = sorted(set(methods.values()) - set(STYLES))
    known = STYLES | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    return {
        label: _style(*known[method], variant)
        for method in ordered + others
        for variant, label in enumerate(sorted(n for n in methods if methods[n] == method))
    }


def _style(color: str, marker: str, variant: int) -> dict[str, Any]:
    """A variant of a method keeps its colour and has hollow markers and a line of its own."""
    filled = {} if variant == 0 else {"markerfacecolor": "white"}
    line = VARIANTS[variant % len(VARIANTS)]
    return {"color": color, "marker": marker, "linestyle": line} | filled


def _draw(axes: "Axes", panel: Panel, styles: Mapping[str, Any], paper: bool) -> None:
    # The first methods are the ones to see: they are drawn last.
    for label in reversed(panel.labels):
        dense = panel.method(label) in DENSE
        draw = _draw_dense if dense else _draw_method
        draw(axes, panel, label, styles[label])
        if paper:
            _draw_paper(axes, panel, label, styles[label]["color"])
    axes.set_title(panel.title, fontsize=11)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    name_sparsities(axes, panel.levels)


def _draw_dense(axes: "Axes", panel: Panel, label: str, style: Mapping[str, Any]) -> None:
    summary = panel.summary(label, 0.0)
    if summary is not None:
        look = style | {"linestyle": ":", "marker": ""}
        axes.axhline(summary.mean, label=label, linewidth=1.3, **look)


def _draw_method(axes: "Axes", panel: Panel, label: str, style: Mapping[str, Any]) -> None:
    curve = panel.curve(label)
    if not curve:
        return
    means = [summary.mean for summary in curve.values()]
    axes.plot(list(curve), means, label=label, markersize=4.5, linewidth=1.5, **style)
    spread = [summary.std or 0.0 for summary in curve.values()]
    low = [mean - std for mean, std in zip(means, spread, strict=True)]
    high = [mean + std for mean, std in zip(means, spread, strict=True)]
    axes.fill_between(list(curve), low, high, color=style["color"], alpha=0.15, linewidth=0)


def _draw_paper(axes: "Axes", panel: Panel, label: str, color: str) -> None:
    curve = panel.paper(label)
    look = {"label": f"{label}, paper", "linestyle": "--", "linewidth": 1, "alpha": 0.8}
    if set(curve) == {0.0}:
        axes.axhline(curve[0.0][0], color=color, **look)
    elif curve:
        means = [mean for mean, _ in curve.values()]
        axes.plot(list(curve), means, color=color, **look)


def _add_legend(figure: "Figure", styles: Mapping[str, Any], columns: int) -> None:
    """One legend below all panels: a label is a line once, and dashed means the paper."""
    from matplotlib.lines import Line2D

    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    handles = [lines[label] for label in styles if label in lines]
    if any(f"{label}, paper" in lines for label in styles):
        look = {"color": "#555555", "linestyle": "--", "linewidth": 1}
        handles.append(Line2D([], [], label="dashed: the paper's", **look))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 2 + 2 * columns),
            frameon=False, fontsize=9, handlelength=2.6,
        )  # fmt: skip
