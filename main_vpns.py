"""VPNs: learn a visual prompt and a mask together, then fine-tune the sparse network with both.

Reads like the paper's algorithm: data; then for each density a fresh network and prompt, the
search, fine-tuning, evaluation. `--help` lists the flags.
"""

import sys
from os.path import dirname, realpath

sys.path.insert(0, dirname(realpath(__file__)))  # where `python -I` does not look

from utils.signals import Stop, end_at_once
from utils.start import begin_process

if __name__ == "__main__":
    begin_process()
    end_at_once()  # if a signal comes during the imports below, which take seconds

import json
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from data import Data, load_data
from models import PromptedClassifier
from models.zoo import listed
from program.data_check import check_data
from program.details import measure
from program.failures import one_line
from program.folder import prepare, run_folder, shared
from program.given import given_masks, own_density
from program.model import LabelMapping, build_model, pruning_rule
from program.plan import check_fit, check_floor, few_steps, plan
from program.record import exported, finished, percent, read_level, read_search, record, save_level
from program.settings import Config, Typed, read_config
from program.teacher import dense_network, start_of, teacher_of
from program.use import use
from pruning import METHODS, Search
from pruning.masks import MaskKeeper, Masks, layer_densities
from pruning.measure import evaluate
from pruning.method import prompt_groups
from pruning.stage import PROMPTED, Group, Stage, Teach, nothing
from pruning.training import run_stage
from runfolder.level import Level
from runfolder.run import COLUMNS, Run
from utils.config import flatten
from utils.device import choose_device
from utils.errors import Interrupted, note, printable
from utils.memory import keep_freed_memory
from utils.ranks import first
from utils.together import Lost, begin, end, from_first, one_end, one_first


def run(config: Config, stop: Stop) -> dict[str, Any]:
    """Make every level of a run, or what is missing of it. Returns the RESULT values."""
    folder = run_folder(config)
    device = choose_device(config.run.device, config.run.gpu)
    config.precision.begin(device)
    from_first(partial(prepare, config, folder))
    with Run(folder, flatten(config), stop) as opened, one_end(stop.meant, one_line):
        levels = [Level(opened, density) for density in config.levels]
        for before, level in pairwise(levels):
            level.previous = before
        rows = [from_first(partial(finished, config, level)) for level in levels]
        if None in rows:
            data = read_data(config, opened, device)
            dense = dense_network(config, folder, data, partial(run, stop=stop))
            teach = teacher_of(config, dense, data, device)
            start, mapping = start_of(config, dense), LabelMapping(config, data)
            build = partial(build_model, config, len(data.classes), device, start)
            for number, level in enumerate(levels):
                if rows[number] is None:
                    rows[number] = make_level(config, level, data, mapping, build, teach)
                    record(config, opened)
        elif opened.was_done and not opened.lacks(rows):
            note("this run is done; --resume none makes it anew")
        else:
            record(config, opened)
    return {
        "run": str(folder), "network": config.network.network, "dataset": config.data.dataset,
        "method": config.method.prune_method, "seed": config.run.seed,
        "rows": [{column: row[column] for column in COLUMNS} for row in rows],
        "read": [level.density for level in levels if level.read],
    }  # fmt: skip


def read_data(config: Config, run: Run, device: torch.device) -> Data:
    """The views of the dataset, which fit the network and are those that the run began with."""
    data = load_data(config.data, config.data.input_size, config.data.batch_size, device)
    data = data.measured_in(config.measured_batch)
    run.surroundings.require_data(data.fingerprint)
    check_floor(config, data)
    check_fit(config, data)
    for line in (*data.notes, *few_steps(data)):
        run.say(f"note: {line}")
    return data


def make_level(
    config: Config, level: Level, data: Data, mapping: LabelMapping,
    build: Callable[[], PromptedClassifier], teach: Teach | None,
) -> dict[str, Any]:
    """One density: search, fine-tune, evaluate, save. Goes on from what is on disk."""
    model = one_first(build)
    model.names, remap = data.classes, partial(mapping.remap, model)
    ended = read_search(config, level, model, len(data.classes))
    masks, row = ended or search_masks(config, level, data, model, mapping, teach)
    if config.finetunes and not level.log.reached("post_prompt"):
        run_stage(model, finetuning(config, model, masks, remap, teach), data, level.log)
    if config.method.post_prompt != "none":
        run_stage(model, post_prompting(config, model, remap), data, level.log)
    clean, prompted, _ = measure(model, data, config.ends_prompted, level.folder)
    row = row | {"clean": percent(clean), "prompted": percent(prompted)}
    return save_level(config, level, model, masks, row)


def search_masks(
    config: Config, level: Level, data: Data, model: PromptedClassifier, mapping: LabelMapping,
    teach: Teach | None,
) -> tuple[Masks, dict[str, Any]]:
    """Search, or take a file's masks, and save; masks, and accuracies before and after."""
    level.log.begin("search")
    before, test_counts = mapping.start(model), []
    find = given_masks(config) or METHODS[config.method.prune_method].find_masks
    remap = partial(mapping.remap, model)
    # A prompted view, then a clean one; scores and prompt move by Adam, 1e-4, decaying by a cosine.
    search = Search(
        model, data, level.density, config.method.epochs, config.views.search,
        weight_optim=config.optim("weight"), score_optim=config.optim("score"),
        prompt_optim=config.optim("score_vp"), floor=config.method.min_layer_density,
        rule=pruning_rule(config, model.network), teach=teach,
        falls=config.method.density_schedule == "cubic",
        remap=remap, before_epoch=remap if config.maps_each_epoch else nothing,
        previous=lambda: read_level(config, level.previous, model.network.state_dict()),
        once=shared(config, level, data).once, log=level.log, tested=test_counts.append,
    )  # fmt: skip
    masks = find(search)
    test = (test_counts and test_counts[-1]) or evaluate(model, data.test)
    level.note_layers(layer_densities(masks))
    row = {"before": percent(before), "after_search": percent(test)}
    level.save_search(*exported(config, level, model, masks, accuracies=row))
    return masks, row


def finetuning(
    config: Config, model: PromptedClassifier, masks: Masks, remap: Callable, teach: Teach | None
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
        teach=teach,
        before_epoch=remap if config.maps_each_epoch else nothing,
        renew=MaskKeeper(model.network, masks),
    )


def post_prompting(config: Config, model: PromptedClassifier, remap: Callable) -> Stage:
    """A fresh prompt alone is trained for the finished network (paper, post-pruning prompt).

    BatchNorm stays in eval mode and the weights are frozen. Without fine-tuning the labels are
    mapped anew before each epoch. Changes the model: its prompt starts afresh.
    """
    torch.nn.init.zeros_(model.prompt.program)
    return Stage(
        name="post_prompt",
        epochs=config.method.epochs,
        groups=prompt_groups(model.prompt, (PROMPTED,), config.optim("weight_vp")),
        views=(PROMPTED,),
        frozen_statistics=True,
        carried=tuple(model.network.parameters()),
        before_epoch=remap if config.method.post_prompt == "zeroshot" else nothing,
    )


def obey(config: Config, typed: Typed, stop: Stop) -> dict[str, Any] | None:
    """Do what the flags ask for. Returns the RESULT values, None for what prints all itself."""
    if config.run.dry_run:
        with redirect_stdout(sys.stderr):  # for notes
            planned = plan(config, typed) | {"run": str(run_folder(config))}
        print(json.dumps(planned, indent=2))
        return None
    if config.run.zoo:
        print(*listed(), sep="\n")
        return None
    stop.install()
    keep_freed_memory()
    if config.run.check_data:
        check_data(config)
        return None
    return use(config, typed) or run(config, stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    stop = Stop()
    try:
        config, typed = read_config(argv)
        begin(config.run.device)
        with one_end(stop.meant, one_line):
            result = obey(from_first(partial(own_density, config, typed)), typed, stop)
            if not config.run.dry_run:
                stop.ignore()
            end()
        if result is not None:
            print("RESULT " + json.dumps(result, allow_nan=False))
        return 0
    except (Exception, Interrupted) as raised:
        error = stop.meant(raised)
        stop.ignore()
        if "--debug" in argv:
            print(*map(printable, traceback.format_exc().splitlines()), sep="\n", file=sys.stderr)
        with suppress(OSError):  # of a terminal that was closed
            if first() or isinstance(error, Lost):
                print(f"error: {one_line(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 1)


if __name__ == "__main__":
    sys.exit(main())
