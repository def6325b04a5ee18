"""Where our own steps spend their time, function by function, with the dense step beside it."""

import cProfile
import pstats
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import reference
from benchmarks.contenders import Batches, Bench
from benchmarks.timing import Turns
from pruning.measure import evaluate

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("search", "finetune", "eval")
Rows = list[dict[str, Any]]


def profile(bench: Bench, what: str, repeats: int, iterations: int) -> tuple[Rows, Rows]:
    """Two tables: whole steps, ours and dense ones that took turns with it, and functions of ours.

    Milliseconds are for one batch: a half-step, of which a search has two an iteration.
    """
    turns = Turns({what: None, **_dense(bench, what)}, repeats, iterations)
    profiler = cProfile.Profile()
    _run(bench, what, _watched(turns, profiler, warm_up=iterations), turns.steps)
    whole = [
        {"what": name, "ms a batch": round(500 * statistics.median(seconds), 2)}
        for name, seconds in turns.seconds.items()
    ]
    whole[0]["what"] += ", under the profiler"
    return whole, function_rows(pstats.Stats(profiler), 2 * iterations * repeats)


def _dense(bench: Bench, what: str) -> dict[str, Callable[[], object]]:
    """What dense training or evaluation makes of the same two batches."""
    if what == "eval":
        dense, view = bench.dense_model(), Batches(bench.clean, 2)
        return {"dense forward": lambda: reference.evaluate(dense, view.batches())}
    passes = bench.dense(moves=False)
    return {"dense step": bench.dense(), "dense forward and backward alone": passes}


def _run(bench: Bench, what: str, loop: Iterator[None], steps: int) -> None:
    """So many iterations of ours, handed out by `loop`."""
    if what == "search":
        bench.search(loop, steps)
        return
    model, masks = bench.search([None], 1)
    if what == "finetune":
        bench.finetune(model, masks, loop, steps)
        return
    view = Batches(bench.clean, 2)
    for _ in loop:
        evaluate(model, view)


def _watched(turns: Turns, profiler: cProfile.Profile, warm_up: int) -> Iterator[None]:
    """The steps of `turns`; the profiler sees those after the first few, and no dense one."""
    for number, _ in enumerate(turns):
        if number >= warm_up:
            profiler.enable()
        yield
        profiler.disable()


def function_rows(stats: pstats.Stats, batches: int) -> Rows:
    """Milliseconds a batch, inner calls included and not, of what takes 0.5 % or more of it.

    Of torch's Python functions, which only pass calls on, none is shown.
    """
    rows = []
    for (file, _, name), (_, _, own, whole, _) in stats.stats.items():
        path = Path(file)
        ours = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "benchmarks")
        if ours or (file == "~" and own >= 0.005 * stats.total_tt):
            title = f"{path.relative_to(ROOT)}: {name}" if ours else name.strip("<>")
            spent = [round(1000 * seconds / batches, 2) for seconds in (whole, own)]
            rows.append({"function": title, "ms": spent[0], "own ms": spent[1]})
    rows.sort(key=lambda row: -row["ms"])
    return [row for row in rows if row["ms"] >= 0.005 * rows[0]["ms"]]
