"""Masks and weights that a search takes from files instead of making them."""

from collections.abc import Callable
from pathlib import Path

from models.artifact import masks_of
from models.mask_file import read_mask_file, start_from
from program.settings import Config
from pruning import Search
from pruning.masks import Masks, apply_masks, density_of, kept_count, pruned_count, total_count
from pruning.method import Trained
from utils.checkpoint import load_model
from utils.errors import UsageError, VPNsError
from utils.level import Level


def given_masks(config: Config) -> Callable[[Search], Masks] | None:
    """A search that takes the masks of a file, and with --init_from all else; None without one."""
    method = config.method
    source = method.init_mask or method.init_from
    if source is None:
        return None
    file = read_mask_file(Path(source), config.levels[0] if len(config.levels) == 1 else None)

    def find_masks(search: Search) -> Masks:
        kept, total = kept_count(file.masks), total_count(file.masks)
        if total - pruned_count(total, search.density) != kept:
            raise UsageError(
                f"{source} keeps {kept} of {total} weights, which is not density "
                f"{search.density:g}: ask for --density_list {density_of(kept, total)!r}"
            )
        if method.init_from is not None:
            path = Path(method.init_from or source)
            start_from(search.model, read_mask_file(path, search.density), path)
        masks = {name: mask.to(search.model.mean.device) for name, mask in file.masks.items()}
        try:
            apply_masks(search.model.network, masks)
        except ValueError as error:
            raise VPNsError(f"{source}: {error}") from error
        search.remap()
        return masks

    return find_masks


def trained_level(level: Level | None) -> Trained | None:
    """The finished level that a chained method goes on from; None at the first."""
    if level is None:
        return None
    tensors, meta = load_model(level.model_path)
    masks = masks_of(tensors, meta)
    return Trained(level.density, masks, {name: tensors[f"{name}.weight"] for name in masks})
