"""How a search grows: its step with the number of weights, its epoch with the number of images.

    python benchmarks/scaling.py [--keep_memory] [--plot benchmarks/scaling.png]

Slopes are exponents: 1 means twice the time for twice the size. "added" is what an iteration of
the search takes beyond two dense steps; the reference has the authors' arithmetic.
"""

import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import reference
from benchmarks.contenders import ADAM, SGD, Bench, Case, LoopLog
from benchmarks.flags import Parser, add_keep_memory, one_of, picture, several, whole
from benchmarks.timing import Ratio, Turns, print_result, print_table, ratios
from data.cache import Resized, room
from data.images import ArrayImages
from data.transforms import clean_size
from data.views import Look, View
from models import NETWORKS
from pruning.masks import prunable
from pruning.method import Search
from pruning.scores import learn_masks
from utils.errors import UsageError
from utils.memory import keep_freed_memory

DENSE, OURS, REFERENCE = "dense", "search", "reference_search"


def step_row(case: Case, repeats: int) -> dict[str, Any]:
    """Milliseconds of an iteration of each contender on one network."""
    bench = Bench(case)
    theirs = bench.phase(reference.search, case.density)
    turns = Turns({DENSE: bench.dense(), OURS: None, REFERENCE: theirs}, repeats)
    bench.search(turns, turns.steps)
    seconds = turns.seconds
    row: dict[str, Any] = {"network": case.network, "weights": weights(bench)}
    row |= {f"{n} ms": 1000 * statistics.median(values) for n, values in seconds.items()}
    for name in (OURS, REFERENCE):
        added = [a - b for a, b in zip(seconds[name], seconds[DENSE], strict=True)]
        row[f"{name} added ms"] = 1000 * statistics.median(added)
        row[f"{name} / dense"] = ratios(seconds[name], seconds[DENSE])
    return row


def weights(bench: Bench) -> int:
    """Prunable weights of the network."""
    return sum(weight.numel() for weight in prunable(bench.network).values())


class Images:
    """The data of a search: so many random images in memory, through the program's loader."""

    val = None

    def __init__(self, count: int, size: int, batch: int) -> None:
        cpu = torch.device("cpu")
        pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
        labels = torch.randint(0, 10, (count,))
        sizes = (clean_size(size), size)
        kept = Resized(ArrayImages(pixels), sizes, room(None, cpu), workers=0)
        look = Look(size, size, batch, cpu, shuffled=True)
        crops = Look(size, sizes[0], batch, cpu, shuffled=True, augmented=True)
        self.prompted = View("prompted", kept, labels, look)
        self.clean = View("clean", kept, labels, crops)
        self.test = self.prompted


class EpochsLog(LoopLog):
    """Notes the seconds of the iterations of each epoch."""

    def __init__(self) -> None:
        super().__init__(())
        self.seconds: list[float] = []

    def steps(self, steps: range, title: str) -> Iterator[int]:
        start = time.perf_counter()
        yield from steps
        self.seconds.append(time.perf_counter() - start)


def epoch_row(case: Case, images: int, epochs: int) -> dict[str, Any]:
    """Seconds of the first epoch of a search, which fills the cache, and of a later one."""
    log, model = EpochsLog(), Bench(case).model()
    data, views = Images(images, case.size, case.batch), ("prompted", "clean")
    learn_masks(Search(model, data, case.density, epochs, views, SGD, ADAM, ADAM, log))
    first, *later = log.seconds
    return {"images": images, "first s": first, "later s": statistics.median(later)}


def slope(rows: Sequence[dict[str, Any]], size: str, cost: str) -> float | None:
    """The least-squares slope of log cost over log size; None where a cost is lost in noise."""
    import numpy as np

    if len(rows) < 2 or min(row[cost] for row in rows) <= 0:
        return None
    x, y = (np.log([row[name] for row in rows]) for name in (size, cost))
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def draw(path: Path, steps: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]]) -> None:
    """Both curves, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    sizes = [row["weights"] for row in steps]
    for name, title in ((REFERENCE, "authors' arithmetic"), (OURS, "ours")):
        added = [row[f"{name} added ms"] for row in steps]
        shown = [ms if ms > 0 else math.nan for ms in added]  # less than nothing is noise
        left.plot(sizes, shown, "o-", label=title)
    left.plot(sizes, [row[f"{DENSE} ms"] for row in steps], "k:", label="two dense steps")
    left.set(xlabel="prunable weights", ylabel="ms added to two dense steps")
    left.legend()
    counts = [row["images"] for row in epochs]
    right.plot(counts, [row["later s"] for row in epochs], "o-")
    right.set(xlabel="training images", ylabel="seconds an epoch of search")
    for axis, xs in ((left, sizes), (right, counts)):
        axis.set(xscale="log", yscale="log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xticks(xs, [f"{x / 1e6:.0f} M" if x >= 1e6 else f"{x:,}" for x in xs])
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def flags() -> Parser:
    """The command line."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", type=several(one_of(tuple(NETWORKS))), default="resnet18,resnet50,vgg16"
    )
    parser.add_argument("--size", type=whole(3), default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=whole(1), default=16, help="images a batch")
    parser.add_argument("--repeats", type=whole(1), default=5, help="iterations of each contender")
    parser.add_argument(
        "--images", type=several(whole(1)), default="1000,2000,4000,8000",
        help="sizes of the dataset",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=whole(2), default=3, help="epochs with each; the first fills the cache"
    )
    add_keep_memory(parser)
    parser.add_argument(
        "--plot", type=picture, default=str(Path(__file__).with_name("scaling.png"))
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = flags()
    args = parser.parse_args(argv)
    if args.keep_memory:
        keep_freed_memory()
    cases = [Case(name, args.size, args.batch) for name in args.networks]
    try:
        for case in cases:
            case.require_fit()
    except UsageError as error:
        parser.error(str(error))
    steps = [step_row(case, args.repeats) for case in cases]
    print_table(steps)
    small = Case("resnet20", 16, 64)
    epochs = [epoch_row(small, count, args.epochs) for count in args.images]
    print_table(epochs)
    slopes = {
        "search_added": slope(steps, "weights", f"{OURS} added ms"),
        "reference_added": slope(steps, "weights", f"{REFERENCE} added ms"),
        "epoch": slope(epochs, "images", "later s"),
    }
    print("slopes: " + ", ".join(f"{name} {value}" for name, value in slopes.items()))
    draw(args.plot, steps, epochs)
    print_result(slopes=slopes, **step_ratios(steps))


def step_ratios(rows: Sequence[dict[str, Any]]) -> dict[str, Ratio]:
    """A search iteration over two dense steps on each network, ours and the reference's."""
    return {f"{n}_{row['network']}": row[f"{n} / dense"] for row in rows for n in (OURS, REFERENCE)}


if __name__ == "__main__":
    main()
