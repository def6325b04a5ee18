"""What a second process brings: a step of the search against processes, and bytes on the wire.

    python benchmarks/scale.py --network resnet18 --size 64 --batch 64 --processes 1,2

The batch is that of all processes together, each of which has one thread and is started by
torchrun, by turns, `--repeats` times. "exchange" is the all-reduce of one iteration alone.

On paper, for GPUs that nobody here has: a step of `--step_ms` on one GPU at its share of the batch,
then the bytes of its iteration through a ring of N, 2 (N - 1) / N of them over each link, at
`--nvlink` GB/s within a machine and `--network_gb` GB/s between machines, nothing overlapped.
"""

import json
import os
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import timing
from benchmarks.step import add_case, build_case, search
from models.classifier import PromptedClassifier
from pruning.masks import prunable
from utils import together
from utils.precision import Precision
from utils.ranks import first, world

HALVES = 2  # half-steps of an iteration
FLOAT = 4  # bytes


def wire(model: PromptedClassifier) -> int:
    """Bytes that each process adds to the sums of an iteration: what moves, and three numbers."""
    scores = sum(weight.numel() for weight in prunable(model.network).values())
    # The scores move in both half-steps, the prompt in the prompted one.
    return FLOAT * (HALVES * (scores + 3) + model.prompt.program.numel())


def measure(args: Namespace) -> None:
    """Within torchrun: seconds an iteration, and of its exchange alone."""
    together.begin(args.device)
    torch.set_num_threads(1)
    args.batch //= world()
    model, pair, device = build_case(args, Precision())
    held = torch.zeros(wire(model) // FLOAT // HALVES, device=device)

    def exchange() -> None:
        for _ in range(HALVES):
            together.total(held)

    turns = timing.Turns({"search": None, "exchange": exchange}, 3, args.iterations, str(device))
    search(model, pair, 0.2, turns, turns.steps)
    if first():
        seconds = {name: min(values) for name, values in turns.seconds.items()}
        timing.print_result(processes=world(), bytes=wire(model), **seconds)
    together.end()


def started(args: Namespace, processes: int) -> dict[str, Any]:
    """What `measure` prints in so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc_per_node={processes}", __file__, *sys.argv[1:]]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VPNS_MEASURE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))


def on_paper(args: Namespace, sent: int, gpus: int, machines: int) -> dict[str, Any]:
    """The speed-up of so many GPUs over one, by the assumptions above."""
    count = gpus * machines
    speed = args.nvlink if machines == 1 else args.network_gb
    exchange = 1000 * 2 * (count - 1) / count * sent / (speed * 1e9)
    step = args.step_ms + exchange
    return {"GPUs": count, "machines": machines, "exchange ms": exchange, "step ms": step,
            "times as fast": count * args.step_ms / step}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = timing.flags(__doc__)
    add_case(parser, batch=64)
    parser.add_argument("--processes", type=timing.positives, default=[1, 2])
    parser.add_argument("--iterations", type=timing.positive, default=4, help="iterations a turn")
    parser.add_argument("--repeats", type=timing.positive, default=3, help="starts of each number")
    parser.add_argument("--step_ms", type=float, default=100.0, help="an iteration on one GPU")
    for name, speed in (("nvlink", 300.0), ("network_gb", 40.0)):
        parser.add_argument(f"--{name}", type=float, default=speed, help="GB/s of a link")
    args = parser.parse_args(argv)
    if "VPNS_MEASURE" in os.environ:
        measure(args)
        return
    rounds = [[started(args, number) for number in args.processes] for _ in range(args.repeats)]
    rows = []
    for number, results in zip(args.processes, zip(*rounds, strict=True), strict=True):
        steps, exchange = ([one[name] for one in results] for name in ("search", "exchange"))
        rows.append({"processes": number, "ms": 1000 * statistics.median(steps),
                     "times as fast": timing.ratios([one[0]["search"] for one in rounds], steps),
                     "exchange ms": 1000 * statistics.median(exchange),
                     "MiB sent": results[0]["bytes"] / 2**20})  # fmt: skip
    paper = [on_paper(args, rounds[0][0]["bytes"], 8, machines) for machines in (1, 4)]
    timing.print_result(rows, paper, rows=rows, paper=paper)


if __name__ == "__main__":
    main()
