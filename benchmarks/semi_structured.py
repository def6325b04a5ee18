"""A linear layer of a 2:4 network on NVIDIA's sparse tensor cores beside the dense kernel.

    python benchmarks/semi_structured.py [--inputs 768 --outputs 3072 --rows 6272]

float16; it needs an NVIDIA GPU of compute capability 8.0 or newer. Prints milliseconds, their
ratio, and the largest difference of the outputs as a share of the largest output.
"""

import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch.sparse import to_sparse_semi_structured

from benchmarks import timing
from pruning.granularity import keep_pattern


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = timing.flags(__doc__)
    parser.add_argument("--inputs", type=timing.positive, default=768)
    parser.add_argument("--outputs", type=timing.positive, default=3072)
    parser.add_argument("--rows", type=timing.positive, default=6272, help="tokens of a batch")
    parser.add_argument("--repeats", type=timing.positive, default=20)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        print("error: no NVIDIA GPU with sparse tensor cores is here", file=sys.stderr)
        return 1
    weight = torch.randn(args.outputs, args.inputs)
    mask = keep_pattern({"weight": weight.abs()}, 0.5, 0.0, 4)["weight"]
    dense = (weight * mask).half().cuda()
    rows = torch.randn(args.rows, args.inputs).half().cuda()
    sparse = to_sparse_semi_structured(dense)
    ways = {"dense": partial(F.linear, rows, dense), "2:4": partial(F.linear, rows, sparse)}
    seconds = timing.Turns(ways, args.repeats, 10, "cuda").run()
    expected, found = (way() for way in ways.values())
    timing.print_result(
        [{"kernel": name, "ms": 1000 * statistics.median(s)} for name, s in seconds.items()],
        ratio=timing.ratios(seconds["2:4"], seconds["dense"]),
        difference=float((expected - found).abs().max() / expected.abs().max()),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
