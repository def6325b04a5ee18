"""What a step costs, over two plain dense SGD steps on the same two batches (the paper's unit).

    python benchmarks/step.py --network resnet18 --size 32 --batch 32 [--keep_memory] [--profile]

Search, fine-tuning and evaluation are ours, run through the training loop of the program;
`reference_*` are the same with the authors' arithmetic (reference.py). The unit uses torch's
default SGD; `dense_fused` is the same with its fused one. Networks have random weights.
"""

import argparse
import cProfile
import pstats
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import reference
from benchmarks.contenders import Batches, Bench, Case
from benchmarks.timing import Ratio, Turns, print_result, print_table, ratios
from models import NETWORKS
from models.classifier import PromptedClassifier
from pruning.measure import evaluate
from utils.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
DENSE = "dense"
Seconds = dict[str, list[float]]


def measure(bench: Bench, repeats: int, iterations: int) -> list[Seconds]:
    """Seconds an iteration of each contender, in groups that took turns with the dense step."""
    searching = Turns(
        {
            DENSE: bench.dense(),
            "search": None,
            "reference_search": bench.phase(reference.search, bench.case.density),
        },
        repeats,
        iterations,
    )
    model, masks = bench.search(searching, searching.steps)
    tuning = Turns(
        {
            DENSE: bench.dense(),
            "dense_fused": bench.dense(fused=True),
            "finetune": None,
            "reference_finetune": bench.phase(reference.finetuning),
        },
        repeats,
        iterations,
    )
    bench.finetune(model, masks, tuning)
    return [searching.seconds, tuning.seconds, evaluation(bench, model, repeats, iterations)]


def evaluation(
    bench: Bench, model: PromptedClassifier, repeats: int, iterations: int
) -> Seconds:
    """Seconds of an evaluation of two batches, dense, ours and the reference's."""
    view = Batches(bench.clean, 2)
    dense, masked = bench.model(prompt=False), bench.scored()
    contenders = {
        DENSE: lambda: reference.evaluate(dense, view.batches()),
        "eval": lambda: evaluate(model, view),
        "reference_eval": lambda: reference.evaluate(masked, view.batches()),
    }
    return Turns(contenders, repeats, iterations).run()


def compare(groups: Sequence[Seconds]) -> tuple[list[dict[str, Any]], dict[str, Ratio]]:
    """Rows of a table, and the ratios over the dense step of the same group."""
    rows, found = [], {}
    for seconds in groups:
        for name, values in seconds.items():
            ratio = None
            if name != DENSE:
                ratio = found[name] = ratios(values, seconds[DENSE])
            rows.append({"what": name, "ms": 1000 * statistics.median(values), "/ dense": ratio})
    return rows, found


def profile(bench: Bench, steps: int) -> list[dict[str, Any]]:
    """Where a half-step of our search spends its time, function by function."""
    profiler = cProfile.Profile()

    def watched() -> Iterator[None]:
        for step in range(2 * steps):
            if step == steps:  # the first half warms up
                profiler.enable()
            yield
        profiler.disable()

    bench.search(watched(), 2 * steps)
    return profile_rows(pstats.Stats(profiler), 2 * steps)


def profile_rows(stats: pstats.Stats, half_steps: int) -> list[dict[str, Any]]:
    """Milliseconds a half-step, inner calls included and not, of what takes 0.5 % or more of it.

    Of torch's Python functions, which only pass calls on, none is shown.
    """
    rows = []
    for (file, _, name), (_, _, own, whole, _) in stats.stats.items():
        path = Path(file)
        ours = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "benchmarks")
        if ours or (file == "~" and own >= 0.005 * stats.total_tt):
            title = f"{path.relative_to(ROOT)}: {name}" if ours else name.strip("<>")
            spent = [round(1000 * seconds / half_steps, 2) for seconds in (whole, own)]
            rows.append({"function": title, "ms": spent[0], "own ms": spent[1]})
    rows.sort(key=lambda row: -row["ms"])
    return [row for row in rows if row["ms"] >= 0.005 * rows[0]["ms"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet18", choices=NETWORKS)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images a batch")
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--iterations", type=int, default=4, help="iterations a turn")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--keep_memory", action="store_true", help="for all alike, as main_vpns.py does"
    )
    parser.add_argument("--profile", action="store_true", help="only profile our search")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.keep_memory:
        keep_freed_memory()
    case = Case(args.network, args.size, args.batch, args.density)
    bench = Bench(case)
    if args.profile:
        rows = profile(bench, args.iterations * args.repeats)
        print_table(rows)
        print_result(**vars(case), threads=args.threads, half_step_ms=rows)
        return
    rows, found = compare(measure(bench, args.repeats, args.iterations))
    print_table(rows)
    print_result(**vars(case), threads=args.threads, **found)


if __name__ == "__main__":
    main()
