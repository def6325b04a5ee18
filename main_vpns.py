"""VPNs: learn a visual prompt and a mask together, then fine-tune the sparse network with both.

Reads like the paper's algorithm: data; then for each density a fresh network and prompt, the
search, fine-tuning, evaluation. `--help` lists the flags.
"""

from utils.signals import Stop, end_at_once

if __name__ == "__main__":
    end_at_once()  # if a signal comes during the imports below, which take seconds

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from data import SPECS, Data, load_data
from models import PromptedClassifier, build_network
from models.artifact import masks_of, restore
from models.backbones import backbone
from program.data_check import check_data
from program.evaluation import evaluate_checkpoint
from program.failures import one_line
from program.folder import announce, run_folder, shared_settings
from program.given import check_given, check_resumed, given_masks, trained_level
from program.mapping import LabelMapping
from program.plan import check_fit, check_floor, plan
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
from pruning.masks import MaskKeeper, Masks, layer_densities
from pruning.measure import Counts, evaluate
from pruning.method import prompt_groups
from pruning.stage import PROMPTED, Group, Stage, nothing
from pruning.training import run_stage
from runfolder.level import Level
from runfolder.run import COLUMNS, Run
from runfolder.shared import Shared
from utils.config import flatten
from utils.device import choose_device
from utils.errors import Interrupted
from utils.memory import keep_freed_memory
from utils.tensors import understood


def run(config: Config, stop: Stop) -> dict[str, Any]:
    """Make every level of a run, or what is missing of it. Returns the RESULT values."""
    folder = run_folder(config)
    device = choose_device(config.run.device, config.run.gpu)
    config.precision.begin(device)
    check_resumed(config.run.resume, folder)
    check_given(config, folder)
    check_fit(config, SPECS[config.data.dataset].classes)
    announce(config, folder)
    with Run(folder, flatten(config), stop) as opened:
        levels = open_levels(config, opened)
        rows = [level.result() for level in levels]
        if None in rows:
            data = load_data(config.data, config.data.input_size, config.data.batch_size, device)
            data = data.measured_in(config.measured_batch)
            opened.surroundings.require_data(data.fingerprint)
            check_floor(config, len(data.classes))
            check_fit(config, len(data.classes), data.clean.images)
            for note in data.notes:
                opened.say(f"note: {note}")
            make_levels(config, levels, rows, data, device)
        elif opened.was_done:
            print("note: this run is done; --resume none makes it anew")
        else:
            record(opened)
    return {
        "run": str(folder),
        "network": config.network.network,
        "dataset": config.data.dataset,
        "method": config.method.prune_method,
        "seed": config.run.seed,
        "rows": [{column: row[column] for column in COLUMNS} for row in rows],
    }


def open_levels(config: Config, run: Run) -> list[Level]:
    """The levels of the run; those of a chained method know the one before them."""
    levels: list[Level] = []
    for density in config.levels:
        level = Level(run, density)
        if METHODS[config.method.prune_method].chained and levels:
            level.previous = levels[-1]
        levels.append(level)
    return levels


def make_levels(
    config: Config, levels: Sequence[Level], rows: list, data: Data, device: torch.device
) -> None:
    """Fill the gaps in `rows`, in place; results.csv and curves.png follow each level."""
    mapping = LabelMapping(config, data)
    for number, level in enumerate(levels):
        if rows[number] is None:
            rows[number] = make_level(config, level, data, mapping, device)
            record(level.run)


def make_level(
    config: Config, level: Level, data: Data, mapping: LabelMapping, device: torch.device
) -> dict[str, Any]:
    """One density: search, fine-tune, evaluate, save. Goes on from what is on disk."""
    model = build_model(config, len(data.classes), device)
    remap = partial(mapping.remap, model)
    ended = read_search(config, level, data, model)
    masks, row, test = ended or find_masks(config, level, data, model, mapping)
    if config.finetunes and not level.log.reached("post_prompt"):
        test = run_stage(model, finetuning(config, model, masks, remap), data, level.log)
    if config.method.post_prompt != "none":
        test = run_stage(model, post_prompting(config, model, remap), data, level.log)
    clean = test or evaluate(model, data.test)
    prompted = evaluate(model, data.test, prompted=True) if config.ends_prompted else None
    row = results_row(level, masks) | row
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


Found = tuple[Masks, dict[str, Any], Counts | None]  # masks, accuracies, counts on the test images


def find_masks(
    config: Config, level: Level, data: Data, model: PromptedClassifier, mapping: LabelMapping
) -> Found:
    """Run the method's search, or take the masks of a file; keep what it ends with."""
    level.log.begin("search")
    before, tested = mapping.start(model), []
    find = given_masks(config) or METHODS[config.method.prune_method].find_masks
    masks = find(
        Search(
            model,
            data,
            level.density,
            config.method.epochs,
            views=config.views.search,
            weight_optim=config.optim("weight"),
            score_optim=config.optim("score"),
            prompt_optim=config.optim("score_vp"),
            log=level.log,
            remap=partial(mapping.remap, model),
            before_epoch=partial(mapping.remap, model) if config.maps_each_epoch else nothing,
            previous=lambda: trained_level(config, level.previous, model.network.state_dict()),
            once=shared(config, level, data).once,
            floor=config.method.min_layer_density,
            tested=tested.append,
        )
    )
    test = (tested and tested[-1]) or evaluate(model, data.test)
    level.note_layers(layer_densities(masks))
    accuracies = {"before": percent(before), "after_search": percent(test)}
    tensors, meta = exported(config, level, model, masks)
    level.save_search(tensors, meta | describe(config, level) | {"accuracies": accuracies})
    return masks, accuracies, test


def read_search(
    config: Config, level: Level, data: Data, model: PromptedClassifier
) -> Found | None:
    """A search that has ended, read back into the model; None where it has not."""
    searched = level.searched()
    if searched is None:
        return None
    tensors, meta = searched
    with understood(level.search_path):
        restore(model, tensors, meta)
        if model.classes != len(data.classes):
            raise ValueError(f"it tells {model.classes} classes apart, not {len(data.classes)}")
        masks = masks_of(tensors, meta)
        require_count(config, level.density, masks)
    level.log.begin("finetune", meta["progress"]["rows"], meta["progress"]["passes"])
    masks = {name: mask.to(model.mean.device) for name, mask in masks.items()}
    return masks, meta["accuracies"], None


def shared(config: Config, level: Level, data: Data) -> Shared:
    """The results that the runs of an experiment share, such as the dense network of OMP."""
    folder = level.run.folder.parents[1] / "shared"
    return Shared(folder, shared_settings(config, data.fingerprint), level.log, level.folder)


def finetuning(
    config: Config, model: PromptedClassifier, masks: Masks, remap: Callable[[], None]
) -> Stage:
    """Weights, biases, BatchNorm and prompt move; the mask is fixed (paper, section 3)."""
    views = config.views.finetune
    weights = Group(tuple(model.network.parameters()), config.optim("weight"))
    return Stage(
        name="finetune",
        epochs=config.method.epochs,
        groups=(weights, *prompt_groups(model.prompt, views, config.optim("weight_vp"))),
        views=views,
        keep_best=True,
        before_epoch=remap if config.maps_each_epoch else nothing,
        renew=MaskKeeper(model.network, masks),
    )


def post_prompting(
    config: Config, model: PromptedClassifier, remap: Callable[[], None]
) -> Stage:
    """A fresh prompt alone is trained for the finished network (paper, post-pruning prompt).

    BatchNorm stays in eval mode and the weights are frozen. Without fine-tuning the labels are
    mapped anew before each epoch. Changes the model: its prompt starts afresh.
    """
    with torch.no_grad():
        model.prompt.program.zero_()
    return Stage(
        name="post_prompt",
        epochs=config.method.epochs,
        groups=prompt_groups(model.prompt, (PROMPTED,), config.optim("weight_vp")),
        views=(PROMPTED,),
        frozen_statistics=True,
        carried=tuple(model.network.parameters()),
        before_epoch=remap if config.method.post_prompt == "zeroshot" else nothing,
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


if __name__ == "__main__":
    sys.exit(main())
