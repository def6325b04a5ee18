"""What the data cost: an epoch of a search over the program's views beside its steps alone.

    python benchmarks/epoch.py --device cuda --size 32 --batch 128 --images 50000

Images of 32 px lie in memory, resized once. The steps alone get one batch over and over. Of
three epochs the first warms up; the others are timed from inside, one after the other.
"""

import copy
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import timing
from benchmarks.data import random_part
from benchmarks.step import add_case, build_case, find_masks, stage_data, stage_log
from data import DataConfig
from data.images import Splits
from data.load import make_views
from data.views import Look
from models.classifier import PromptedClassifier
from utils.precision import Precision


def epochs_of_search(model: PromptedClassifier, data: Any, device: torch.device) -> list[float]:
    """Seconds of the epochs of a search over `data`, but the first."""
    times, log = [], stage_log(())
    log.steps = lambda steps, title: steps
    log.epoch = lambda *_: times.append(timing.clock(str(device)))
    find_masks(model, data, 0.2, 3, log)
    return [end - start for start, end in pairwise(times)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = timing.flags(__doc__)
    add_case(parser, batch=128)
    parser.add_argument("--images", type=timing.positive, default=50_000)
    args = parser.parse_args(argv)
    model, pair, device = build_case(args, Precision())
    part = random_part(args.images - args.images % args.batch, None)
    look = Look(args.size, args.size, args.batch, device)
    views = make_views(Splits(part, part.split(args.batch, 0, "test")[0]), DataConfig(), look)
    alone = epochs_of_search(copy.deepcopy(model), stage_data(pair, len(views.clean)), device)
    whole = epochs_of_search(copy.deepcopy(model), views, device)
    rows = [{"what": "steps alone", "s": alone[-1]}, {"what": "epoch", "s": whole[-1]}]
    timing.print_result(rows, **vars(args), epoch_over_steps=timing.ratios(whole, alone))


if __name__ == "__main__":
    main()
