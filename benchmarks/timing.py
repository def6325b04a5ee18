"""Shared by the benchmarks: flags that count, contenders that take turns, tables of ratios."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

Contender = Callable[[], object]
Ratio = dict[str, float]  # median, min, max


def flags(description: str) -> argparse.ArgumentParser:
    """A parser that shows the description as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positives(text: str) -> list[int]:
    """Whole numbers above 0, between commas."""
    return [positive(part) for part in text.split(",")]


def add_device(parser: argparse.ArgumentParser) -> None:
    """The flag of the device that is measured."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")


def clock(device: str) -> float:
    """Seconds, when `device` has done all its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Turns:
    """Contenders that take turns, in one order and then in the other, `repeats` times each.

    Iterate over it to run them, after one turn each to warm up. A contender that is None is the
    loop itself: in its turns `iterations` steps are handed out, and the time between them is its
    own. So a training loop is timed from inside, without its help. A clock is read when `device`
    has done all its work.
    """

    def __init__(
        self,
        contenders: Mapping[str, Contender | None],
        repeats: int,
        iterations: int = 1,
        device: str = "cpu",
    ) -> None:
        self._contenders, self._repeats, self._iterations = contenders, repeats, iterations
        self._device = device
        self.steps = (1 + repeats) * iterations  # of each contender
        self.seconds: dict[str, list[float]] = {name: [] for name in contenders}  # an iteration

    def __iter__(self) -> Iterator[None]:
        names = list(self._contenders)
        for turn in range(1 + self._repeats):
            for name in names if turn % 2 else reversed(names):
                start = clock(self._device)
                yield from self._take(self._contenders[name])
                if turn > 0:
                    spent = clock(self._device) - start
                    self.seconds[name].append(spent / self._iterations)

    def _take(self, contender: Contender | None) -> Iterator[None]:
        for _ in range(self._iterations):
            if contender is None:
                yield
            else:
                contender()

    def run(self) -> dict[str, list[float]]:
        """Run contenders none of which is the loop; returns their seconds."""
        list(self)
        return self.seconds


def ratios(seconds: Sequence[float], unit: Sequence[float]) -> Ratio:
    """Median, least and largest ratio of neighbouring measurements."""
    return spread([a / b for a, b in zip(seconds, unit, strict=True)])


def spread(values: Sequence[float]) -> Ratio:
    """Median, least and largest of some values, to four digits."""
    parts = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in parts.items()}


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with the same keys as columns; numbers with three digits, ratios as a spread."""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "{median:.3f} ({min:.3f} - {max:.3f})".format(**value)
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def print_result(**values: Any) -> None:
    """Print the last line of a benchmark."""
    print("RESULT " + json.dumps(values), flush=True)
