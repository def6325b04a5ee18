"""What is kept of a level: the end of its search and its model, both written and read back."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models import PromptedClassifier
from models.arithmetic import effective, multiply_adds
from models.artifact import export, masks_of, restore
from models.backbones import backbone
from models.label_map import unread
from models.widths import widths_of
from program.model import fitting_masks
from program.settings import Config, model_flags
from pruning import METHODS
from pruning.granularity import CHANNEL, pattern_count
from pruning.masks import Masks, kept_count, prunable, total_count
from pruning.measure import Counts
from pruning.method import Trained, eval_mode
from runfolder.level import SEARCHED, Level
from runfolder.results import draw_run
from runfolder.run import Run
from runfolder.stage_log import level_name
from runfolder.surroundings import environment
from utils.checkpoint import load_model
from utils.config import flatten
from utils.counts import count_at
from utils.errors import VPNsError
from utils.packed import packed_bytes
from utils.ranks import first
from utils.tensors import require_like, understood
from utils.together import from_first, require_same

Tensors, Values = Mapping[str, Tensor], Mapping[str, Any]


def percent(counts: Counts | None) -> float | None:
    """Accuracy in percent, to four decimals."""
    return counts and round(counts.accuracy, 4)


def check_row(
    config: Config, density: float, tensors: Tensors, meta: Values, row: Values
) -> None:
    """Raises ValueError when a row in a model file is not of its tensors, or of another network."""
    masks = own_masks(config, density, tensors, meta)
    counted = counts_of(masks) | {"network": config.network.network, "dataset": config.data.dataset}
    said = {**meta, **row}
    if wrong := [name for name, value in counted.items() if said.get(name) != value]:
        raise ValueError(f"its tensors have another {', '.join(wrong)}")


def finished(config: Config, level: Level) -> dict[str, Any] | None:
    """The results row of a level that is done, or None."""
    return level.result(partial(check_row, config, level.density))


def own_masks(config: Config, density: float, tensors: Tensors, meta: Values) -> Masks:
    """The masks in a file of a run. Raises ValueError for another network or density."""
    masks = fitting_masks(config.network.network, tensors, meta)
    require_count(config, density, masks)
    return masks


def counts_of(masks: Masks) -> dict[str, Any]:
    """The counts of a results row."""
    kept, total = kept_count(masks), total_count(masks)
    return {"real_density": round(kept / total, 9), "kept": kept, "prunable": total}


def read_search(
    config: Config, level: Level, model: PromptedClassifier, classes: int
) -> tuple[Masks, dict[str, Any]] | None:
    """Read a search that has ended into the model: masks and accuracies; or None."""
    searched = from_first(level.searched)
    if searched is None:
        return None
    tensors, meta = searched
    with understood(level.search_path):
        masks = own_masks(config, level.density, tensors, meta)
        restore(model, tensors, meta)
        if (model.label_map is not None) != (config.method.label_mapping_mode != "none"):
            raise ValueError("its label map and --label_mapping_mode disagree")
        if model.classes != classes:
            raise ValueError(f"it tells {model.classes} classes apart, not {classes}")
    level.log.begin("finetune", meta["progress"]["rows"], meta["progress"]["passes"])
    masks = {name: mask.to(model.mean.device) for name, mask in masks.items()}
    return masks, {name: meta["accuracies"][name] for name in SEARCHED}


def save_level(
    config: Config, level: Level, model: PromptedClassifier, masks: Masks, row: dict[str, Any]
) -> dict[str, Any]:
    """Write model.safetensors, which also ends the level. Returns its row: counts and `row`."""
    tensors, meta = exported(config, level, model, masks)
    row |= {"density": level.density, "passes": round(level.log.passes, 4)} | counts_of(masks)
    row["macs"] = multiply_adds_of(model, masks, config.sizes.input)
    row["packed_bytes"] = packed_bytes(tensors, masks)
    level.finish(tensors, meta | {"result": row})
    prompted = "" if row["prompted"] is None else f", prompted {row['prompted']:.2f} %"
    kept = f"{row['kept']:,} of {row['prunable']:,} weights kept"
    level.run.say(f"density {level.density:g}: {kept}, accuracy {row['clean']:.2f} %{prompted} "
                  f"({level.model_path})")
    head = backbone(config.network.network).head_tensors
    share = unread(masks, head, model.label_map) / max(1, row["kept"])
    if level.density < 1 and share >= 0.01:
        level.run.say(f"note: {share:.0%} of these weights lie in rows of the head that no class "
                      "reads; with --label_mapping_mode none there are no such rows")
    return row


@torch.no_grad()
def multiply_adds_of(model: PromptedClassifier, masks: Masks, size: int) -> int:
    """Multiply-adds of the weights that stay, for one clean image of `size` pixels."""
    image = torch.zeros(1, 3, size, size, device=model.mean.device)
    with eval_mode(model):
        dense = multiply_adds(lambda: model(image))
    return sum(effective(dense, name, mask) for name, mask in masks.items())


def record(config: Config, run: Run) -> None:
    """Bring results.csv and curves.png up to date with all levels, those of other commands too."""
    if not first():
        return
    for path in sorted(run.folder.glob("d*/model.safetensors")):
        if (name := path.parent.name) in run.rows:
            continue
        run.rows[name] = None
        try:
            with understood(path.parent):
                density = float(name.removeprefix("d"))
                if level_name(density) != name:
                    raise ValueError("a level is named for its density")
            level = Level(run, density)
            run.rows[name] = level.row(partial(check_row, config, density))
        except VPNsError as error:
            run.say(f"note: {error}; results.csv leaves it out")
    run.write_results()
    with run.optional("picture"):
        draw_run(run.folder)
    run.metrics.complete(filter(None, run.rows.values()))


def read_level(config: Config, level: Level | None, like: Mapping[str, Tensor]) -> Trained | None:
    """The level that a chained method goes on from, or None; VPNsError if it is unlike `like`."""
    if level is None:
        return None
    tensors, meta = from_first(partial(load_model, level.model_path))
    with understood(level.model_path):
        require_like(like, tensors)
        masks = own_masks(config, level.density, tensors, meta)
    return Trained(level.density, masks, {name: tensors[name] for name in masks})


def exported(
    config: Config, level: Level, model: PromptedClassifier, masks: Masks, **numbers: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and values for a model file, compared with the density asked for, to the weight.

    Raises VPNsError unless the masks have the exact count, the network that was measured has
    zeros where they prune, and the file has +0.0 there and gives the same masks back.
    """
    try:
        require_count(config, level.density, masks)
    except ValueError as error:
        raise VPNsError(f"{error}, the model is not saved: a bug") from error
    require_same({**model.state_dict(), **masks}, f"density {level.density:g}")
    tensors, meta = export(model, masks)
    read = masks_of(tensors, meta)
    for name, weight in prunable(model.network).items():
        pruned = ~masks[name]
        written = tensors[name][pruned]
        wrong = int(weight[pruned].count_nonzero()) + int((read[name] != masks[name]).sum())
        wrong += int((written.signbit() | (written != 0)).sum())
        if wrong:
            raise VPNsError(f"density {level.density:g}: {name} does not follow its mask in "
                            f"{wrong} places, the model is not saved: a bug")
    row = backbone(config.network.network)
    if widths := widths_of(row.skeleton(model.sources).state_dict(), tensors):
        numbers["widths"] = widths
    return tensors, meta | {
        "network": config.network.network, "dataset": config.data.dataset,
        "density": level.density, "sizes": vars(config.sizes),
        "prompt": config.prompt.prompt_method, "config": model_flags(flatten(config)),
        "versions": {n: environment()[n] for n in ("python", "torch", "torchvision")}, **numbers,
    }  # fmt: skip


def require_count(config: Config, density: float, masks: Masks) -> None:
    """Raises ValueError unless the masks keep exactly what the density asks for.

    Masks from a file, of channels, and of a method whose count is not exact, keep what they keep;
    the real density is told.
    """
    total, kept = total_count(masks), kept_count(masks)
    asked = count_at(density, total)
    if config.pattern:
        asked = sum(pattern_count(mask, *config.pattern) for mask in masks.values())
    elif config.method.granularity == CHANNEL:
        return
    given = config.method.init_mask or config.method.init_from
    if kept != asked and METHODS[config.method.prune_method].exact and not given:
        raise ValueError(f"density {density:g}: the mask keeps {kept} of {total} weights "
                         f"instead of {asked}")
