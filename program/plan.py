"""The plan of a run, without weights, and whether network, densities and images fit."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from data import SPECS, Data, load_data
from models.backbones import own_row, source_classes
from models.fit import Build, require_fit, require_rest
from program.given import given_outputs
from program.model import pruning_rule
from program.settings import Config, Typed, preset_values
from pruning import METHODS
from pruning.granularity import CHANNEL
from pruning.masks import prunable
from pruning.selection import require_room
from utils.config import flatten
from utils.counts import count_at
from utils.errors import DataError, UsageError
from utils.ranks import world

FEW_STEPS = 10


def plan(config: Config, typed: Typed) -> dict[str, Any]:
    """Config, levels with their counts, passes and sizes, as --dry_run prints them.

    Where the data are on the disk, the last batch of an epoch is looked at too.
    """
    check_floor(config)
    check_fit(config)
    if config.method.epochs and (data := _data_here(config)):
        check_fit(config, data)
    total, prompt = _units(config), config.build_prompt()
    levels = [_level_plan(config, number, total) for number in range(len(config.levels))]
    return {
        "config": flatten(config), "origins": origins(config, typed), "levels": levels,
        "prunable": total, "passes": sum(level["passes"] for level in levels),
        "classes": SPECS[config.data.dataset].classes,
        "prompt_values": 0 if prompt is None else 3 * int(prompt.region.sum()),
        "notes": size_notes(config),
    }  # fmt: skip


def _data_here(config: Config) -> Data | None:
    """The data if they can be had without a download."""
    own = replace(config.data, download=False, bad_images="stop")
    try:
        return load_data(own, own.input_size, own.batch_size, torch.device("cpu"))
    except (DataError, OSError):
        return None


def _level_plan(config: Config, number: int, total: int) -> dict[str, Any]:
    """One density: counts, and the passes over the training set that the method is given."""
    density, passes = config.levels[number], passes_of(config, number)
    kept = count_at(density, total) if config.pattern is None else None  # short groups keep more
    return {"density": density, "sparsity": round(1 - density, 12), "kept": kept, "passes": passes}


def passes_of(config: Config, number: int) -> int:
    """The passes over the training set that a level is given, by its number."""
    density, method = config.levels[number], METHODS[config.method.prune_method]
    epochs, views = config.method.epochs, config.views
    before = config.levels[number - 1] if method.chained and number else 1.0
    passes = method.search_passes(epochs, len(views.search), before, density)
    passes += epochs * len(views.finetune) if config.finetunes else 0
    return passes + (epochs if config.method.post_prompt != "none" else 0)


def origins(config: Config, typed: Typed) -> dict[str, str]:
    """Where each value came from: typed, config, preset, registry (of networks ...), default."""
    flags, defaults = flatten(config), flatten(Config())
    filled = [n for n, value in flags.items() if defaults[n] is None and value is not None]
    sources = {"default": flags, "registry": filled}
    sources |= {"preset": preset_values(config, typed)}
    return {name: source for source, names in sources.items() for name in names} | dict(typed)


def size_notes(config: Config) -> list[str]:
    """What the sizes cost that nobody may have meant, one line each."""
    sizes, shown = config.sizes, config.build_prompt() if any(config.prompted) else None
    lines = []
    if shown and sizes.output > 2 * sizes.input and config.prompt.prompt_method != "expand":
        times = round(sizes.output**2 / sizes.input**2)
        lines.append(f"images of {sizes.input} px are shown on a canvas of {sizes.output} px, "
                     f"{times} times as many pixels in every prompted step: --output_size "
                     f"{sizes.input} makes it as large as they are")
    covered = int(shown.region.sum()) if config.prompt.prompt_method == "pad" and shown else 0
    if sizes.output == sizes.input and 2 * covered > sizes.output**2:
        lines.append(f"the frame of {sizes.pad} px covers {covered / sizes.output**2:.0%} of an "
                     f"image of {sizes.input} px: a smaller --pad_size shows more of it")
    return lines


def few_steps(data: Data) -> list[str]:
    """A line when an epoch has fewer than ten steps, from which little is learned."""
    steps = len(data.clean)
    line = f"an epoch has {steps} step{'s' * (steps > 1)}: a smaller --batch_size makes more"
    return [line] * (steps < FEW_STEPS)


def check_floor(config: Config, data: Data | None = None) -> None:
    """Raises UsageError when a density leaves too few weights for --min_layer_density."""
    floor = config.method.min_layer_density
    sizes = _layer_sizes(config, data) if floor else ()
    for density in config.levels:
        require_room(sizes, density, floor)


def check_fit(config: Config, data: Data | None = None) -> None:
    """Raises UsageError when the network cannot train on images of the sizes asked for.

    With `data`, the last batch of an epoch is looked at instead of any other.
    """
    name, build = config.network.network, _network(config, data)
    sizes = [config.data.input_size] + [config.prompt.output_size] * config.ends_prompted
    batch = config.data.batch_size
    if data is None:
        require_fit(name, build, sizes, min(batch, 2))
        return
    images = data.clean.images
    rest = min(images, images % batch or batch)
    if rest < world():
        raise UsageError(f"the last batch of an epoch has {rest} images for {world()} processes: "
                         "choose a --batch_size that leaves no such rest")
    if config.method.epochs:
        require_rest(name, build, sizes, rest // world())


def _units(config: Config) -> int:
    """How many weights, or channels, a density is a share of."""
    if config.method.granularity != CHANNEL:
        return sum(_layer_sizes(config))
    return pruning_rule(config, _network(config, None)()).count


def _layer_sizes(config: Config, data: Data | None = None) -> list[int]:
    """Sizes of the prunable weights."""
    row = own_row(config.network)
    return [weight.numel() for weight in prunable(row.skeleton(_outputs(config, data))).values()]


def _network(config: Config, data: Data | None) -> Build:
    """Builds the network of a level."""
    return partial(own_row(config.network).build, _outputs(config, data))


def _outputs(config: Config, data: Data | None) -> int:
    """The outputs of a level's network; the source's where no classes are known."""
    classes = SPECS[config.data.dataset].classes if data is None else len(data.classes)
    if config.method.label_mapping_mode == "none" and classes:
        return classes
    own = config.network
    given = given_outputs(config)
    return given or source_classes(own.network, own.weights, own.weights_key)
