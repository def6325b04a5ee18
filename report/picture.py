"""The picture of a comparison: accuracy against sparsity, a panel a network and dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from report.panel import Panel, Series
from report.runs import facts, rank
from runfolder.results import new_figure

# For methods without a curve of their own; Paul Tol's colours, as theirs are.
OTHERS = (("#661100", "h"), ("#6699CC", "p"), ("#882255", "*"), ("#DDCC77", "d"))
VARIANTS = ("-", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)))
COLUMNS = 3
# Above this sparsity the levels crowd on a linear axis: then it is linear in log(density).
CROWDED = 90
NEAREST = 0.055  # of the width of the axis, between named sparsities


def comparison_figure(panels: Sequence[Panel], paper: bool) -> Figure:
    """All panels under one legend: ours solid with a band of one standard deviation."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    looks = _looks(panels)
    size = max(6.4, 4.6 * columns), 3.6 * rows + 0.24 * -(-len(looks) // 2) + 0.5
    figure = new_figure(*size)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1, title=panel.title)
        _draw(axes, panel, looks, paper)
        if number % columns == 0:
            axes.set_ylabel("test accuracy (%)")
        if number + columns >= len(panels):
            axes.set_xlabel("sparsity (% of weights removed)")
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    handles = [lines[label] for label in looks if label in lines]
    if any(f"{label}, paper" in lines for label in looks):
        dashed = {"color": "#555555", "linestyle": "--", "linewidth": 1}
        handles.append(Line2D([], [], label="dashed: the paper's", **dashed))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9,
                      ncols=min(len(handles), 2 + 2 * columns), handlelength=2.6)
    return figure


def _looks(panels: Sequence[Panel]) -> dict[str, dict[str, Any]]:
    """The look of each label, in the order of the legend; variants of a method share its colour."""
    names = {series.label: series.runs[0].method for panel in panels for series in panel.series}
    order = sorted(names, key=lambda label: (rank(names[label]), label))
    plain = [name for name in dict.fromkeys(names[n] for n in order) if not facts(name).curve]
    looks: dict[str, dict[str, Any]] = {}
    for label in order:
        name = names[label]
        color, marker = facts(name).curve or OTHERS[plain.index(name) % len(OTHERS)]
        number = sum(names[other] == name for other in looks)
        looks[label] = {"color": color, "marker": marker,
                        "linestyle": VARIANTS[number % len(VARIANTS)],
                        "markerfacecolor": "white" if number else color}  # fmt: skip
    return looks


def _draw(axes: Axes, panel: Panel, looks: Mapping[str, Any], paper: bool) -> None:
    # The first methods are the ones to see: they are drawn last.
    for series in reversed(panel.series):
        look = looks[series.label]
        _draw_series(axes, series, look)
        curve = series.paper() if paper else {}
        dashed = {"color": look["color"], "label": f"{series.label}, paper",
                  "linestyle": "--", "linewidth": 1, "alpha": 0.8}  # fmt: skip
        if set(curve) == {0.0}:
            axes.axhline(curve[0.0][0], **dashed)
        elif curve:
            axes.plot(list(curve), [mean for mean, _ in curve.values()], **dashed)
    axes.title.set_fontsize(11)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _name_sparsities(axes, panel.levels)


def _draw_series(axes: Axes, series: Series, look: Mapping[str, Any]) -> None:
    means = {level: mean for level in sorted(series.levels) if (mean := series.mean(level))}
    if series.dense and 0.0 in means:
        line = look | {"linestyle": ":", "marker": ""}
        axes.axhline(means[0.0].mean, label=series.label, linewidth=1.3, **line)
    elif means and not series.dense:
        line = look | {"markersize": 4.5, "linewidth": 1.5}
        axes.plot(list(means), [m.mean for m in means.values()], label=series.label, **line)
        low, high = ([m.mean + sign * (m.std or 0) for m in means.values()] for sign in (-1, 1))
        axes.fill_between(list(means), low, high, color=look["color"], alpha=0.15, linewidth=0)


def _name_sparsities(axes: Axes, levels: Sequence[float]) -> None:
    """Name `levels` (%) below a finished picture's axis, where there is room; stretch its end."""
    if levels and levels[-1] > CROWDED:
        # The limits are those of a linear axis; its margin may lie beyond 100 %.
        positions = [x for line in axes.get_lines() for x in line.get_xdata() if x > 1] or levels
        axes.set_xscale("function", functions=(_stretch, _squeeze))
        low, high = (float(_stretch(x)) for x in (min(positions), max(positions)))
        margin = 0.04 * (high - low) or 0.1
        axes.set_xlim(float(_squeeze(low - margin)), float(_squeeze(high + margin)))
    if 0 < len(levels) <= 8:
        names, last = [], -1.0
        for level in levels:
            scaled = axes.transScale.transform((level, axes.get_ylim()[0]))
            place = axes.transLimits.transform(scaled)[0]
            names.append(f"{level:g}" if place - last >= NEAREST else "")
            last = place if names[-1] else last
        axes.set_xticks(levels, names)


def _stretch(sparsity: Any) -> Any:
    """-log(density) of a sparsity in percent."""
    return -numpy.log(numpy.maximum(1 - numpy.asarray(sparsity) / 100, 1e-6))


def _squeeze(stretched: Any) -> Any:
    """The inverse of `_stretch`."""
    return 100 * (1 - numpy.exp(-numpy.asarray(stretched)))
