"""What would be run, shown as a plan without data or weights, and where each value came from."""

from typing import Any

import torch

from data import SPECS
from models.backbones import backbone
from program.settings import Config, preset_values
from pruning import METHODS
from pruning.masks import prunable, pruned_count
from utils.config import flatten


def plan(config: Config, typed: set[str]) -> dict[str, Any]:
    """What would be run: config, levels with their counts, passes and sizes. Needs no data."""
    with torch.device("meta"):
        network = backbone(config.network.network).build(_head(config))
    total = sum(layer.weight.numel() for layer in prunable(network).values())
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
    epochs, (search, finetune) = config.method.epochs, config.views
    before = config.levels[number - 1] if method.chained and number else 1.0
    passes = method.search_passes(epochs, len(search), before, density)
    passes += epochs * len(finetune) if config.finetunes else 0
    return {
        "density": density,
        "sparsity": round(1 - density, 12),
        "kept": total - pruned_count(total, density),
        "passes": passes + (epochs if config.method.post_prompt != "none" else 0),
    }


def _head(config: Config) -> int:
    row = backbone(config.network.network)
    own_head = config.method.label_mapping_mode == "none"
    return (SPECS[config.data.dataset].classes if own_head else None) or row.source_classes


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
