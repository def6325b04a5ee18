"""A horizontal axis for sparsities, which crowd towards 100 %."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Above this sparsity the levels crowd on a linear axis: then it is linear in log(density).
CROWDED = 90
NEAREST = 0.055  # of the width of the axis, between named sparsities


def name_sparsities(axes: "Axes", levels: Sequence[float]) -> None:
    """Name `levels` (%) below a finished picture's axis, where there is room; stretch its end."""
    if levels and levels[-1] > CROWDED:
        # The limits that were found are those of a linear axis; its margin may lie beyond 100 %.
        drawn = [x for line in axes.get_lines() for x in line.get_xdata() if x > 1] or levels
        axes.set_xscale("function", functions=(_stretch, _squeeze))
        low, high = (float(_stretch(x)) for x in (min(drawn), max(drawn)))
        margin = 0.04 * (high - low) or 0.1
        axes.set_xlim(float(_squeeze(low - margin)), float(_squeeze(high + margin)))
    if 0 < len(levels) <= 8:
        axes.set_xticks(levels, _tick_names(axes, levels))


def _stretch(sparsity: Any) -> Any:
    """-log(density) of a sparsity in percent."""
    import numpy

    return -numpy.log(numpy.maximum(1 - numpy.asarray(sparsity) / 100, 1e-6))


def _squeeze(stretched: Any) -> Any:
    """The inverse of `_stretch`."""
    import numpy

    return 100 * (1 - numpy.exp(-numpy.asarray(stretched)))


def _tick_names(axes: "Axes", levels: Sequence[float]) -> list[str]:
    """The sparsities, but nothing for one too near to the last named."""
    transform = axes.transLimits.transform
    scale = axes.transScale.transform
    names, last = [], -1.0
    for level in levels:
        place = transform(scale((level, axes.get_ylim()[0])))[0]
        roomy = place - last >= NEAREST
        names.append(f"{level:g}" if roomy else "")
        last = place if roomy else last
    return names
