"""What a step costs, over two plain dense SGD steps on the same two batches (the paper's unit).

    python benchmarks/step.py --network resnet18 --size 32 --batch 32 [--keep_memory]

Search, fine-tuning and evaluation are ours, run through the training loop of the program;
`reference_*` are the same with the authors' arithmetic (reference.py). The unit is what a user
would write in the same precision: torch's default SGD and kernels, one by one; `dense_fused` is
the same with torch's fused SGD, on a GPU `dense_graph` as a CUDA graph. Networks have random
weights. On a GPU the peak of its memory is told too, each contender alone.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from benchmarks import reference, timing
from benchmarks.reference import Batch
from models import NETWORKS
from models.backbones import backbone, build_network
from models.classifier import PromptedClassifier
from models.fit import require_fit
from program.flags import ADAM, SGD, parse_density
from prompts.kinds import PadPrompt
from pruning.masks import MaskKeeper, Masks, all_kept, apply_masks
from pruning.measure import evaluate
from pruning.method import Search
from pruning.replay import CudaGraphs
from pruning.scores import learn_masks
from pruning.stage import CLEAN, PROMPTED, Group, Stage, nothing
from pruning.training import run_stage
from utils.device import choose_device
from utils.errors import VPNsError
from utils.memory import keep_freed_memory
from utils.optim import Optim
from utils.precision import Precision

CLASSES = 10
DENSE = "dense"
Pair = list[Batch]  # a prompted batch and a clean one
Seconds = dict[str, list[float]]


class Repeated(list):
    """A view of one batch that comes `length` times."""

    def __init__(self, batch: Batch, length: int) -> None:
        super().__init__([batch] * length)

    def batches(self, *key: object, start: int = 0) -> Iterator[Batch]:
        return iter(self[start:])


def stage_data(pair: Pair, length: int) -> SimpleNamespace:
    """The views of a stage of `length` iterations."""
    prompted, clean = (Repeated(batch, length) for batch in pair)
    return SimpleNamespace(prompted=prompted, clean=clean, test=clean, val=None)


def stage_log(loop: Iterable[None]) -> SimpleNamespace:
    """The log of a stage whose iterations follow `loop`; records nothing, wants nothing."""
    calls = ("resume", "answer_stop", "wants_state", "wants_test", "save", "epoch", "add_passes")
    log = SimpleNamespace(key=(7, 0.5), hold=nullcontext, **dict.fromkeys(calls, nothing))
    log.steps = lambda steps, title: (step for step, _ in zip(steps, loop, strict=True))
    return log


def random_pair(size: int, batch: int) -> Pair:
    """Random images (B, 3, size, size) in [0, 1] and labels (B,), twice."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(2, batch, 3, size, size, generator=draw)
    labels = torch.randint(0, CLASSES, (2, batch), generator=draw)
    return list(zip(images, labels, strict=True))


def build_model(network: str, size: int) -> PromptedClassifier:
    """A network of random weights behind a `pad` prompt, its first classes mapped."""
    prompt = PadPrompt(size, max(1, size // 14))  # 16 of 224
    model = PromptedClassifier(build_network(network, "none"), prompt)
    model.label_map = torch.arange(CLASSES)
    return model


def add_case(parser: argparse.ArgumentParser, batch: int) -> None:
    """The flags of a network and its batches, and of the device that is measured."""
    parser.add_argument("--network", default="resnet18", choices=NETWORKS)
    parser.add_argument("--size", type=timing.positive, default=32,
                        help="side of the images in pixels")
    parser.add_argument("--batch", type=timing.positive, default=batch, help="images a batch")
    timing.add_device(parser)


def build_case(
    args: argparse.Namespace, precision: Precision
) -> tuple[PromptedClassifier, Pair, torch.device]:
    """The model and the batches of these flags, on their device. Raises VPNsError."""
    device = choose_device(args.device, None)
    precision.begin(device)
    build = partial(backbone(args.network).build, CLASSES)
    require_fit(args.network, build, [args.size], min(args.batch, 2))
    model = build_model(args.network, args.size).to(device)
    model.use(precision)
    pair = [(x.to(device), y.to(device)) for x, y in random_pair(args.size, args.batch)]
    return model, pair, device


def with_scores(model: PromptedClassifier, density: float) -> PromptedClassifier:
    """A copy with scores and their threshold, for the reference."""
    model = copy.deepcopy(model).train()
    reference.set_threshold(reference.add_scores(model.network), density)
    return model


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Kernels as torch chooses them, whose last digits may differ from run to run on a GPU."""
    ours = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(ours[0], warn_only=True)
        torch.backends.cudnn.deterministic = ours[1]


def dense_steps(
    model: PromptedClassifier, pair: Pair, fused: bool | None = None
) -> Callable[[], None]:
    """Two plain SGD steps of a copy, on the batch of either view, without the prompt."""
    model = copy.deepcopy(model)
    parameters = model.network.parameters()
    optimizer = torch.optim.SGD(parameters, fused=fused, **reference.SGD_OPTIONS)

    @torch_defaults()
    def two_steps() -> None:
        for images, labels in pair:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return two_steps


def dense_graph(model: PromptedClassifier, pair: Pair) -> Callable[[], None]:
    """The same two steps recorded as one CUDA graph."""
    steps, graphs = dense_steps(model, pair), CudaGraphs()
    with graphs.aside():
        steps()
    return graphs.record(steps)


def peak_memory(model: PromptedClassifier, pair: Pair, density: float) -> dict[str, float]:
    """The most MiB of a GPU that torch holds for six iterations of a contender alone."""
    loop, steps, ours = [None] * 6, 6, copy.deepcopy(model)
    runs = {
        DENSE: lambda: [two_steps() for two_steps in repeat(dense_steps(model, pair), steps)],
        "search": lambda: search(ours, pair, density, loop, steps),
        "finetune": lambda: finetune(ours, pair, all_kept(ours.network), loop, steps),
    }
    peaks = {}
    for name, run in runs.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        peaks[name] = torch.cuda.max_memory_reserved() / 2**20
    return peaks


def search(
    model: PromptedClassifier, pair: Pair, density: float, loop: Iterable[None], steps: int
) -> Masks:
    """Make `steps` steps of our search, at the pace of `loop`; changes the model."""
    return find_masks(model, stage_data(pair, steps), density, 1, stage_log(loop))


def find_masks(
    model: PromptedClassifier, data: Any, density: float, epochs: int, log: SimpleNamespace
) -> Masks:
    """Our search over the views of `data`; changes the model."""
    sgd, adam = Optim(SGD), Optim(ADAM)
    views = (PROMPTED, CLEAN)
    return learn_masks(Search(model, data, density, epochs, views, sgd, adam, adam, log))


def finetune(
    model: PromptedClassifier, pair: Pair, masks: Masks, loop: Iterable[None], steps: int
) -> None:
    """Make `steps` steps of our fine-tuning after the search, at the pace of `loop`."""
    apply_masks(model.network, masks)
    parts, keeper = (model.network, model.prompt), MaskKeeper(model.network, masks)
    groups = tuple(Group(tuple(part.parameters()), Optim(SGD)) for part in parts)
    stage = Stage("finetune", 1, groups, renew=keeper)
    run_stage(model, stage, stage_data(pair, steps), stage_log(loop))


def measure(
    model: PromptedClassifier, pair: Pair, density: float, repeats: int, iterations: int
) -> list[Seconds]:
    """Seconds an iteration of each contender, in groups that took turns with the dense step."""
    ours, device = copy.deepcopy(model), str(pair[0][0].device)
    turns = partial(timing.Turns, repeats=repeats, iterations=iterations, device=device)
    theirs = reference.search(with_scores(model, density), density)
    searching = turns({DENSE: dense_steps(model, pair), "search": None,
                       "reference_search": partial(theirs.iteration, *pair)})  # fmt: skip
    masks = search(ours, pair, density, searching, searching.steps)
    theirs = reference.finetuning(with_scores(model, density))
    graph = {} if device == "cpu" else {"dense_graph": dense_graph(model, pair)}
    tuning = turns({DENSE: dense_steps(model, pair),
                    "dense_fused": dense_steps(model, pair, fused=True), "finetune": None,
                    "reference_finetune": partial(theirs.iteration, *pair), **graph})  # fmt: skip
    finetune(ours, pair, masks, tuning, tuning.steps)
    view, scored = Repeated(pair[1], 2), with_scores(model, density)
    measuring = turns({
        DENSE: torch_defaults()(lambda: reference.evaluate(model, view.batches())),
        "eval": lambda: evaluate(ours, view),
        "reference_eval": lambda: reference.evaluate(scored, view.batches()),
    })
    return [searching.seconds, tuning.seconds, measuring.run()]


def compare(groups: Sequence[Seconds]) -> tuple[list[dict[str, Any]], dict[str, timing.Ratio]]:
    """Rows of a table, and the ratios over the dense step of the same group."""
    rows = [{"what": name, "ms": 1000 * statistics.median(values),
             "/ dense": None if name == DENSE else timing.ratios(values, seconds[DENSE])}
            for seconds in groups for name, values in seconds.items()]  # fmt: skip
    return rows, {row["what"]: row["/ dense"] for row in rows if row["/ dense"]}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser, number = timing.flags(__doc__), timing.positive
    add_case(parser, batch=32)
    parser.add_argument("--density", type=parse_density, default=0.2)
    parser.add_argument("--iterations", type=number, default=4, help="iterations a turn")
    parser.add_argument("--repeats", type=number, default=9, help="turns of each contender")
    parser.add_argument("--threads", type=number, default=torch.get_num_threads())
    parser.add_argument("--keep_memory", action="store_true",
                        help="for all alike, as main_vpns.py does")
    for name in ("amp", "deterministic", "cuda_graphs"):
        parser.add_argument(f"--{name}", default=getattr(Precision(), name), help="as main_vpns.py")
    parser.add_argument("--channels_last", action="store_true", help="as main_vpns.py")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.keep_memory:  # from here on, whoever asks for memory
        keep_freed_memory()
    names = ("amp", "channels_last", "deterministic", "cuda_graphs")
    try:
        precision = Precision(**{name: getattr(args, name) for name in names})
        model, pair, device = build_case(args, precision)
    except VPNsError as error:
        parser.error(str(error))
    peaks = peak_memory(model, pair, args.density) if device.type == "cuda" else {}
    rows, over_dense = compare(measure(model, pair, args.density, args.repeats, args.iterations))
    timing.print_result(rows, **vars(args), **over_dense, peak_mib=peaks)


if __name__ == "__main__":
    main()
