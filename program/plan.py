"""What would be run, shown as a plan without data or weights, and where each value came from."""

from functools import partial
from typing import Any

import torch

from data import SPECS
from models.backbones import backbone
from models.fit import require_fit, require_rest
from program.settings import Config, preset_values
from pruning import METHODS
from pruning.masks import prunable, pruned_count, require_room
from utils.config import flatten


def plan(config: Config, typed: set[str]) -> dict[str, Any]:
    """What would be run: config, levels with their counts, passes and sizes. Needs no data."""
    check_floor(config, SPECS[config.data.dataset].classes)
    check_fit(config, SPECS[config.data.dataset].classes)
    total = sum(layer_sizes(config, SPECS[config.data.dataset].classes))
    levels = [_level_plan(config, number, total) for number in range(len(config.levels))]
    prompt = config.build_prompt()
    return {
        "config": flatten(config),
        "origins": origins(config, typed),
        "levels": levels,
        "prunable": total,
        "passes": sum(level["passes"] for level in levels),
        "classes": SPECS[config.data.dataset].classes,
        "prompt_values": 0 if prompt is None else 3 * int(prompt.region.sum()),
    }


def _level_plan(config: Config, number: int, total: int) -> dict[str, Any]:
    """One density: counts, and the passes over the training set that the method is given."""
    density, method = config.levels[number], METHODS[config.method.prune_method]
    epochs, views = config.method.epochs, config.views
    before = config.levels[number - 1] if method.chained and number else 1.0
    passes = method.search_passes(epochs, len(views.search), before, density)
    passes += epochs * len(views.finetune) if config.finetunes else 0
    return {
        "density": density,
        "sparsity": round(1 - density, 12),
        "kept": total - pruned_count(total, density),
        "passes": passes + (epochs if config.method.post_prompt != "none" else 0),
    }


def layer_sizes(config: Config, classes: int | None) -> list[int]:
    """Sizes of the prunable weights; of the source's own head where `classes` are not known."""
    row, own_head = backbone(config.network.network), config.method.label_mapping_mode == "none"
    with torch.device("meta"):
        network = row.build((own_head and classes) or row.source_classes)
    return [weight.numel() for weight in prunable(network).values()]


def check_floor(config: Config, classes: int | None) -> None:
    """Raises UsageError when a density leaves too few weights for --min_layer_density."""
    floor = config.method.min_layer_density
    sizes = layer_sizes(config, classes) if floor else ()
    for density in config.levels:
        require_room(sizes, density, floor)


def check_fit(config: Config, classes: int | None, images: int | None = None) -> None:
    """Raises UsageError when the network cannot train on images of the sizes asked for.

    With the number of training `images`, the last batch of an epoch is looked at too.
    """
    row, name = backbone(config.network.network), config.network.network
    own_head = config.method.label_mapping_mode == "none"
    build = partial(row.build, (own_head and classes) or row.source_classes)
    sizes = [config.data.input_size] + [config.prompt.output_size] * config.ends_prompted
    batch = config.data.batch_size
    if images is None:
        require_fit(name, build, sizes, min(batch, 2))
    elif config.method.epochs:
        require_rest(name, build, sizes, min(images, images % batch or batch))


def origins(config: Config, typed: set[str]) -> dict[str, str]:
    """Where each value came from: typed, preset, registry (network, dataset, method), default."""
    preset, open_flags = preset_values(config, typed), flatten(Config())
    found = {}
    for name, value in flatten(config).items():
        filled = open_flags[name] is None and value is not None
        found[name] = "registry" if filled else "default"
        if name in preset:
            found[name] = "preset"
        if name in typed:
            found[name] = "typed"
    return found
