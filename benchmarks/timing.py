"""What the benchmarks share: contenders that take turns in one process, a table, a RESULT line."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Ratio = dict[str, float]  # median, min, max


class Turns:
    """Contenders that take turns, in one order and then in the other, `repeats` times each.

    Iterate over it to run them. A contender that is None is the loop itself: whenever its turn
    comes, `iterations` steps are handed out and the time between them is counted as its own. So
    a training loop can be timed from inside, without its help.
    """

    def __init__(
        self,
        contenders: Mapping[str, Callable[[], object] | None],
        repeats: int,
        iterations: int = 1,
        warm_up: int = 1,
    ) -> None:
        self._contenders = dict(contenders)
        self._turns, self._iterations = range(-warm_up, repeats), iterations
        self.steps = (warm_up + repeats) * iterations  # that each contender makes
        self.seconds: dict[str, list[float]] = {name: [] for name in contenders}

    def __iter__(self) -> Iterator[None]:
        names = list(self._contenders)
        for turn in self._turns:
            for name in names if turn % 2 else reversed(names):
                start = time.perf_counter()
                yield from self._take(self._contenders[name])
                if turn >= 0:
                    spent = time.perf_counter() - start
                    self.seconds[name].append(spent / self._iterations)

    def _take(self, contender: Callable[[], object] | None) -> Iterator[None]:
        for _ in range(self._iterations):
            if contender is None:
                yield
            else:
                contender()

    def run(self) -> dict[str, list[float]]:
        """Run contenders none of which is the loop; seconds per iteration, one value a turn."""
        for _ in self:
            raise AssertionError("a contender that is None needs a loop around it")
        return self.seconds


def ratios(seconds: Sequence[float], unit: Sequence[float]) -> Ratio:
    """Median, least and largest ratio of neighbouring measurements."""
    values = [a / b for a, b in zip(seconds, unit, strict=True)]
    return spread(values)


def spread(values: Sequence[float]) -> Ratio:
    """Median, least and largest of some values, to four digits."""
    parts = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in parts.items()}


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with the same keys as columns; numbers with three digits, ratios as a spread."""
    texts = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for text in texts:
        cells = [cell.ljust(width) for cell, width in zip(text, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "{median:.3f} ({min:.3f} - {max:.3f})".format(**value)
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def print_result(**values: Any) -> None:
    """The last line of a benchmark."""
    print("RESULT " + json.dumps(values), flush=True)
