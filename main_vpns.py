"""VPNs: learn a visual prompt and a mask together, then fine-tune the sparse network with both.

Reads like the paper's algorithm: data; then for each density a fresh network and prompt, the
search, fine-tuning, evaluation. `--help` lists the flags.
"""

from utils.signals import Stop, end_at_once

if __name__ == "__main__":
    end_at_once()  # if a signal comes during the imports below, which take seconds

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import Data, load_data
from models import PromptedClassifier, build_network
from models.artifact import masks_of, restore
from models.backbones import backbone
from models.label_map import count_predictions, frequency_mapping, random_mapping
from program.data_check import check_data
from program.evaluation import evaluate_checkpoint
from program.folder import announce, run_folder, shared_settings
from program.given import check_given, check_resumed, given_masks, trained_level
from program.plan import check_floor, plan
from program.record import (
    describe,
    exported,
    percent,
    record,
    require_count,
    results_row,
    save_level,
)
from program.settings import Config, check_classes, read_config
from pruning import METHODS, Search
from pruning.masks import (
    MaskKeeper,
    Masks,
    apply_masks,
    layer_densities,
)
from pruning.measure import measured
from pruning.method import prompt_groups
from pruning.stage import PROMPTED, Group, Stage, nothing
from pruning.training import run_stage
from runfolder.level import Level
from runfolder.run import COLUMNS, Run, open_run
from runfolder.shared import Shared
from utils.config import flatten
from utils.errors import Interrupted, VPNsError
from utils.files import NO_ROOM, write_problem
from utils.memory import keep_freed_memory
from utils.remember import remembered
from utils.seed import choose_device
from utils.tensors import understood


def run(config: Config, stop: Stop) -> dict[str, Any]:
    """Make every level of a run, or what is missing of it. Returns the RESULT values."""
    folder = run_folder(config)
    device = choose_device(config.run.device, config.run.gpu)
    config.precision.begin(device)
    check_resumed(config.run.resume, folder)
    check_given(config, folder)
    announce(config, folder)
    with open_run(folder, flatten(config), stop) as log:
        levels = open_levels(config, log)
        rows = [level.result() for level in levels]
        if None in rows:
            data = load_data(config.data, config.data.input_size, config.data.batch_size, device)
            data = data.measured_in(config.measured_batch)
            log.require_data(data.fingerprint)
            check_floor(config, len(data.classes))
            for note in data.notes:
                log.say(f"note: {note}")
            make_levels(config, levels, rows, data, device)
        elif log.was_done:
            print("note: this run is done; --resume none makes it anew")
        else:
            record(log)
    return {
        "run": str(folder),
        "network": config.network.network,
        "dataset": config.data.dataset,
        "method": config.method.prune_method,
        "seed": config.run.seed,
        "rows": [{column: row[column] for column in COLUMNS} for row in rows],
    }


def open_levels(config: Config, log: Run) -> list[Level]:
    """The levels of the run; those of a chained method know the one before them."""
    levels: list[Level] = []
    for density in config.levels:
        level = Level(log, density, config.run.seed, config.run.eval_every)
        if METHODS[config.method.prune_method].chained and levels:
            level.previous = levels[-1]
        levels.append(level)
    return levels


def make_levels(
    config: Config, levels: Sequence[Level], rows: list, data: Data, device: torch.device
) -> None:
    """Fill the gaps in `rows`, in place; results.csv and curves.png follow each level."""
    for number, level in enumerate(levels):
        if rows[number] is None:
            rows[number] = make_level(config, level, data, device)
            record(level.run)


def make_level(
    config: Config, level: Level, data: Data, device: torch.device
) -> dict[str, Any]:
    """One density: search, fine-tune, evaluate, save. Goes on from what is on disk."""
    model = build_model(config, len(data.classes), device)
    masks, before = find_or_load_masks(config, level, data, model)
    if config.finetunes and not level.reached("post_prompt"):
        run_stage(model, finetuning(config, model, masks, data), data, level)
    if config.method.post_prompt != "none":
        run_stage(model, post_prompting(config, model, data), data, level)
    clean = measured(model, data.test)
    prompted = measured(model, data.test, prompted=True) if config.ends_prompted else None
    row = results_row(level, masks) | before
    row |= {"clean": percent(clean), "prompted": prompted and percent(prompted)}
    save_level(config, level, model, masks, row)
    return row


def build_model(config: Config, classes: int, device: torch.device) -> PromptedClassifier:
    """The pre-trained network with a fresh prompt; a head of its own when nothing is mapped."""
    mapping = config.method.label_mapping_mode
    row = backbone(config.network.network)
    own_head = classes if mapping == "none" else None
    network = build_network(
        config.network.network, config.network.weights, own_head, config.run.seed
    )
    check_classes(network.get_submodule(row.head).out_features, classes, mapping)
    model = PromptedClassifier(network, config.build_prompt(), row.mean, row.std).to(device)
    model.use(config.precision)
    return model


def find_or_load_masks(
    config: Config, level: Level, data: Data, model: PromptedClassifier
) -> tuple[Masks, dict[str, Any]]:
    """The masks of the search and its accuracies; a search that has ended is read back."""
    searched = level.searched()
    if searched is None:
        return find_masks(config, level, data, model)
    tensors, meta = searched
    with understood(level.search_path):
        restore(model, tensors, meta)
        if model.classes != len(data.classes):
            raise ValueError(f"it tells {model.classes} classes apart, not {len(data.classes)}")
        masks = masks_of(tensors, meta)
        require_count(level, masks)
    level.begin("finetune", meta["progress"]["rows"], meta["progress"]["passes"])
    return {name: mask.to(model.mean.device) for name, mask in masks.items()}, meta["accuracies"]


def find_masks(
    config: Config, level: Level, data: Data, model: PromptedClassifier
) -> tuple[Masks, dict[str, Any]]:
    """Run the method's search, or take the masks of a file; keep what it ends with."""
    level.begin("search")
    remap = label_mapping(config, data, model)
    remap()
    before = percent(measured(model, data.test))
    find = given_masks(config) or METHODS[config.method.prune_method].find_masks
    masks = find(make_search(config, level, data, model, remap))
    apply_masks(model.network, masks)
    level.note_layers(layer_densities(masks))
    accuracies = {"before": before, "after_search": percent(measured(model, data.test))}
    tensors, meta = exported(level, model, masks)
    level.save_search(tensors, meta | describe(config, level) | {"accuracies": accuracies})
    return masks, accuracies


def make_search(
    config: Config, level: Level, data: Data, model: PromptedClassifier, remap: Callable[[], None]
) -> Search:
    """All that a method may use, at this density."""
    folder = level.run.folder.parents[1] / "shared"
    shared = Shared(folder, shared_settings(config, data.fingerprint), level, level.folder)
    return Search(
        model,
        data,
        level.density,
        config.method.epochs,
        views=config.views[0],
        weight_optim=config.optim("weight"),
        score_optim=config.optim("score"),
        prompt_optim=config.optim("score_vp"),
        log=level,
        remap=remap,
        before_epoch=remap if config.maps_each_epoch else nothing,
        previous=lambda: trained_level(level.previous, model.network.state_dict()),
        once=shared.once,
        floor=config.method.min_layer_density,
    )


def label_mapping(
    config: Config, data: Data, model: PromptedClassifier
) -> Callable[[], None]:
    """A function that maps the labels with the model as it is when called (paper, FLM).

    Its draws depend on the seed alone, so that what a dense network gives is the same for all
    densities.
    """
    mode, classes = config.method.label_mapping_mode, len(data.classes)

    def remap() -> None:
        if mode == "none":
            return
        if mode == "rlm":
            head = backbone(config.network.network).head
            sources = model.network.get_submodule(head).out_features
            mapping = random_mapping(sources, classes, config.run.seed)
        else:
            mapping = frequency_mapping(count_mapped(config, data, model))
        model.label_map = mapping.to(model.mean.device)

    return remap


def count_mapped(config: Config, data: Data, model: PromptedClassifier) -> Tensor:
    """Which source classes the model sees in the training images of each class, (S, C)."""
    view, classes = data.clean.in_batches_of(config.measured_batch), len(data.classes)
    prompted, seed = config.maps_with_prompt, config.run.seed

    def count() -> Tensor:
        return count_predictions(model, view.batches(seed, "mapping"), classes, prompted)

    return remembered(data.clean, model, ("mapping",), count)


def finetuning(
    config: Config, model: PromptedClassifier, masks: Masks, data: Data
) -> Stage:
    """Weights, biases, BatchNorm and prompt move; the mask is fixed (paper, section 3)."""
    views = config.views[1]
    weights = Group(tuple(model.network.parameters()), config.optim("weight"))
    return Stage(
        name="finetune",
        epochs=config.method.epochs,
        groups=(weights, *prompt_groups(model.prompt, views, config.optim("weight_vp"))),
        views=views,
        keep_best=True,
        before_epoch=label_mapping(config, data, model) if config.maps_each_epoch else nothing,
        after_step=MaskKeeper(model.network, masks),
    )


def post_prompting(config: Config, model: PromptedClassifier, data: Data) -> Stage:
    """A fresh prompt alone is trained for the finished network (paper, post-pruning prompt).

    BatchNorm stays in eval mode and the weights are frozen. Without fine-tuning the labels are
    mapped anew before each epoch. Changes the model: its prompt starts afresh.
    """
    with torch.no_grad():
        model.prompt.program.zero_()
    renewed = config.method.post_prompt == "zeroshot"
    return Stage(
        name="post_prompt",
        epochs=config.method.epochs,
        groups=prompt_groups(model.prompt, (PROMPTED,), config.optim("weight_vp")),
        views=(PROMPTED,),
        frozen_statistics=True,
        carried=tuple(model.network.parameters()),
        before_epoch=label_mapping(config, data, model) if renewed else nothing,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    stop = Stop()
    try:
        config, typed = read_config(argv)
        if config.run.dry_run:
            print(json.dumps(plan(config, typed) | {"run": str(run_folder(config))}, indent=2))
            return 0
        stop.install()
        keep_freed_memory()
        if config.run.check_data:
            check_data(config)
            stop.ignore()
            return 0
        if config.run.evaluate:
            device = choose_device(config.run.device, config.run.gpu)
            result = evaluate_checkpoint(config, typed, device)
        else:
            result = run(config, stop)
        stop.ignore()
        print("RESULT " + json.dumps(result))
        return 0
    except (Exception, Interrupted) as raised:
        error = stop.meant(raised)
        stop.ignore()
        if "--debug" in argv:
            traceback.print_exc()
        with suppress(OSError):  # of a terminal that was closed
            print(f"error: {one_line(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 1)


def one_line(error: BaseException) -> str:
    """The message of an error as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, VPNsError | Interrupted):
        return text
    if isinstance(error, OSError):
        if error.filename is None and error.errno in (errno.EPIPE, *NO_ROOM):
            return f"the standard output takes no more ({error.strerror}): run the command again"
        path = Path(error.filename or os.getcwd())
        full = error.errno in NO_ROOM
        return write_problem(path, error) if full else f"{path}: {error.strerror or text}"
    no_room = "allocate memory" in text or "Storage size calculation overflowed" in text
    if no_room or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"out of memory, lower --batch_size or --cache_gb: {text}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile fails here; it needs a C++ compiler: get g++ or drop it: {text[:180]}"
    return f"{type(error).__name__}: {text[:300]} (this is a bug: run with --debug and report it)"


if __name__ == "__main__":
    sys.exit(main())
