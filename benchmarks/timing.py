"""Shared by the benchmarks: flags that count, contenders that take turns, tables of ratios."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Contender = Callable[[], object]
Ratio = dict[str, float]  # median, min, max


def flags(description: str) -> argparse.ArgumentParser:
    """A parser that shows the description as it is."""
    as_it_is = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=as_it_is)


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


@dataclass
class Turns:
    """Contenders that take turns, in one order and then in the other, `repeats` times each.

    Iterate over it to run them, after one turn each to warm up. A contender that is None is the
    loop itself: in its turns `iterations` steps are handed out, and the time between them is its
    own. So a training loop is timed from inside, without its help.
    """

    contenders: Mapping[str, Contender | None]
    repeats: int
    iterations: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.steps = (1 + self.repeats) * self.iterations  # of each contender
        self.seconds: dict[str, list[float]] = {name: [] for name in self.contenders}

    def __iter__(self) -> Iterator[None]:
        for turn in range(1 + self.repeats):
            for name in self.contenders if turn % 2 else reversed(self.contenders):
                contender, start = self.contenders[name], clock(self.device)
                for _ in range(self.iterations):
                    if contender is None:
                        yield
                    else:
                        contender()
                if turn > 0:
                    self.seconds[name].append((clock(self.device) - start) / self.iterations)

    def run(self) -> dict[str, list[float]]:
        """Run contenders none of which is the loop; returns their seconds an iteration."""
        list(self)
        return self.seconds


def ratios(seconds: Sequence[float], unit: Sequence[float]) -> Ratio:
    """Median, least and largest ratio of neighbouring measurements, to four digits."""
    values = [a / b for a, b in zip(seconds, unit, strict=True)]
    parts = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in parts.items()}


def _cell(value: Any) -> str:
    """Numbers with three digits, ratios as a spread."""
    if isinstance(value, dict):
        return "{median:.3f} ({min:.3f} - {max:.3f})".format(**value)
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def print_result(*tables: Sequence[Mapping[str, Any]], **values: Any) -> None:
    """Print tables, of rows with the same keys as columns, and the last line of a benchmark."""
    for rows in tables:
        lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(map(str.ljust, line, widths)).rstrip())
    print("RESULT " + json.dumps(values), flush=True)
