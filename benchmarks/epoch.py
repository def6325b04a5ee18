"""What the data cost: an epoch of a search over the program's views beside its steps alone.

    python benchmarks/epoch.py --device cuda --size 32 --batch 128 --images 50000

Images of 32 px lie in memory, resized once. The steps alone get one batch over and over. Of
three epochs the first warms up; the others are timed from inside, one after the other.
"""

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.data import random_part
from benchmarks.step import add_case, build_case, stage_data, stage_log
from benchmarks.timing import clock, flags, positive, print_result, print_table, ratios
from data import DataConfig
from data.images import Splits
from data.load import make_views
from data.views import Look
from models.classifier import PromptedClassifier
from program.flags import ADAM, SGD
from pruning.method import Search
from pruning.scores import learn_masks
from pruning.stage import CLEAN, PROMPTED
from utils.device import choose_device
from utils.optim import Optim
from utils.precision import Precision


def epochs_of_search(model: PromptedClassifier, data: Any, device: torch.device) -> list[float]:
    """Seconds of the epochs of a search over `data`, but the first."""
    times, adam, log = [], Optim(ADAM), stage_log(())
    log.steps = lambda steps, title: steps
    log.epoch = lambda *_: times.append(clock(str(device)))
    search = Search(model, data, 0.2, 3, (PROMPTED, CLEAN), Optim(SGD), adam, adam, log)
    learn_masks(search)
    return [end - start for start, end in zip(times, times[1:], strict=False)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = flags(__doc__)
    add_case(parser, batch=128)
    parser.add_argument("--images", type=positive, default=50_000)
    args = parser.parse_args(argv)
    device = choose_device(args.device, None)
    precision = Precision()
    precision.begin(device)
    model, pair = build_case(args, precision, device)
    part = random_part(args.images - args.images % args.batch, None)
    look = Look(args.size, args.size, args.batch, device)
    views = make_views(Splits(part, part.split(args.batch, 0, "test")[0]), DataConfig(), look)
    alone = epochs_of_search(copy.deepcopy(model), stage_data(pair, len(views.clean)), device)
    whole = epochs_of_search(copy.deepcopy(model), views, device)
    rows = [{"what": "steps alone", "s": alone[-1]}, {"what": "epoch", "s": whole[-1]}]
    print_table(rows)
    print_result(**vars(args), epoch_over_steps=ratios(whole, alone))


if __name__ == "__main__":
    main()
