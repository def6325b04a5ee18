"""What a step costs, over two plain dense SGD steps on the same two batches (the paper's unit).

    python benchmarks/step.py --network resnet18 --size 32 --batch 32 [--keep_memory]
    python benchmarks/step.py --profile finetune    # search, finetune or eval, by function

Search, fine-tuning and evaluation are ours, run through the training loop of the program;
`reference_*` are the same with the authors' arithmetic (reference.py). The unit uses torch's
default SGD; `dense_fused` is the same with its fused one. Networks have random weights.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import profiling, reference
from benchmarks.contenders import Batches, Bench, Case
from benchmarks.flags import Parser, add_keep_memory, share, whole
from benchmarks.timing import Ratio, Turns, print_result, print_table, ratios
from models import NETWORKS
from models.classifier import PromptedClassifier
from pruning.measure import evaluate
from utils.errors import UsageError
from utils.memory import keep_freed_memory

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
    bench.finetune(model, masks, tuning, tuning.steps)
    return [searching.seconds, tuning.seconds, evaluation(bench, model, repeats, iterations)]


def evaluation(bench: Bench, model: PromptedClassifier, repeats: int, iterations: int) -> Seconds:
    """Seconds of an evaluation of two batches, dense, ours and the reference's."""
    view = Batches(bench.clean, 2)
    dense, masked = bench.dense_model(), bench.scored()
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


def flags() -> Parser:
    """The command line."""
    parser = Parser(__doc__.partition("\n\nSearch")[0])
    parser.add_argument("--network", default="resnet18", choices=NETWORKS)
    parser.add_argument("--size", type=whole(3), default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=whole(1), default=32, help="images a batch")
    parser.add_argument("--density", type=share, default=0.2)
    parser.add_argument("--iterations", type=whole(1), default=4, help="iterations a turn")
    parser.add_argument("--repeats", type=whole(1), default=9, help="turns of each contender")
    parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads())
    add_keep_memory(parser)
    parser.add_argument(
        "--profile",
        nargs="?",
        choices=profiling.STEPS,
        const="search",
        help="only profile ours, function by function, with the dense step beside it (search)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = flags()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.keep_memory:  # from here on, whoever asks for memory
        keep_freed_memory()
    case = Case(args.network, args.size, args.batch, args.density)
    said = {**vars(case), "threads": args.threads, "keep_memory": args.keep_memory}
    try:
        case.require_fit()
        bench, turns = Bench(case), (args.repeats, args.iterations)
        if args.profile:
            whole_steps, functions = profiling.profile(bench, args.profile, *turns)
            print_table(whole_steps)
            print()
            print_table(functions)
            print_result(**said, profile=args.profile, steps=whole_steps, functions=functions)
            return
        rows, found = compare(measure(bench, *turns))
    except UsageError as error:
        parser.error(str(error))
    print_table(rows)
    print_result(**said, **found)


if __name__ == "__main__":
    main()
