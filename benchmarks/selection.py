"""What choosing the mask costs: our selection beside torch's own calls, in milliseconds.

    python benchmarks/selection.py --device cuda [--counts 11678912,25502912,138344128]

The counts are the prunable weights of ResNet-18 and ResNet-50, and the weights of VGG-16. The
largest density stands for the side of which fewer are kept.
"""

import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import timing
from pruning.selection import select_top
from utils.counts import count_at
from utils.device import choose_device

DENSITIES = (0.02, 0.1, 0.4, 0.6)


def milliseconds(count: int, repeats: int, device: torch.device) -> dict[str, float]:
    """The median time of each way to select among `count` values."""
    values = torch.rand(count, generator=torch.Generator().manual_seed(0)).pow_(4).to(device)
    contenders = {f"ours {part:g}": partial(select_top, values, part) for part in DENSITIES}
    contenders |= {"topk 0.1": lambda: values.topk(count_at(0.1, count), sorted=False),
                   "sort": values.sort, "copy": values.clone}  # fmt: skip
    turns = timing.Turns(contenders, repeats, 4, str(device)).run()
    return {name: 1000 * statistics.median(seconds) for name, seconds in turns.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = timing.flags(__doc__)
    parser.add_argument("--counts", type=timing.positives, default="11678912,25502912,138344128")
    parser.add_argument("--repeats", type=timing.positive, default=5, help="turns of each way")
    timing.add_device(parser)
    args = parser.parse_args(argv)
    device = choose_device(args.device, None)
    found = {count: milliseconds(count, args.repeats, device) for count in args.counts}
    rows = [{"values": count, **times} for count, times in found.items()]
    timing.print_result(rows, device=args.device, milliseconds=found)


if __name__ == "__main__":
    main()
