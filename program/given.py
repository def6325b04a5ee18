"""Masks and weights that a search takes from files instead of making them."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from models.backbones import NetworkConfig, backbone
from models.mask_file import MaskFile, read_mask_file, start_from
from program.settings import Config, Typed
from pruning import Search
from pruning.masks import Masks, kept_count, layer_densities, prunable, total_count
from runfolder.stage_log import level_name
from utils.checkpoint import has_meta, read_meta
from utils.config import replace_flags
from utils.counts import count_at
from utils.errors import UsageError, VPNsError, note


def check_given(config: Config, folder: Path) -> None:
    """Read the files of --init_mask and --init_from before any work, if they are still needed."""
    _read.cache_clear()  # of an earlier run
    ends = [folder / level_name(density) / "search.safetensors" for density in config.levels]
    if not all(end.exists() for end in ends):
        given_masks(config)


def given_masks(config: Config) -> Callable[[Search], Masks] | None:
    """A search that takes the masks of a file, and with --init_from all else; None without one.

    Raises VPNsError when a file is refused, UsageError when its masks are not what was asked for.
    """
    method = config.method
    source = method.init_mask or method.init_from
    if source is None:
        return None
    path = Path(method.init_from or source)
    file = _given(config, Path(source))
    start = method.init_from is not None and _given(config, path)
    for density in config.levels:
        _check_asked(source, file.masks, density, method.min_layer_density)

    def find_masks(search: Search) -> Masks:
        _read.cache_clear()  # not needed again
        if start:
            start_from(search.model, start, path)
        masks = {name: mask.to(search.model.mean.device) for name, mask in file.masks.items()}
        try:
            return search.use(masks)
        except ValueError as error:
            raise VPNsError(f"{source}: {error}") from error

    return find_masks


def _given(config: Config, path: Path) -> MaskFile:
    """A file as the run reads it: scores at its density, if it has only one."""
    only = config.levels[0] if len(config.levels) == 1 else None
    return _read(path, config.network, only)


@lru_cache(maxsize=2)
def _read(path: Path, own: NetworkConfig, density: float | None) -> MaskFile:
    """Read once: a file is looked at when the run begins, and used when its data are there."""
    found = read_mask_file(path, backbone(own.network), prunable, density, own.weights_key)
    if str(path) != own.weights and has_meta(path) and read_meta(path).get("widths"):
        raise UsageError(f"{path} is a compacted network: start from it with --weights {path}")
    return found


def given_outputs(config: Config) -> int | None:
    """The outputs of the network in the file of --init_from; None without one, or once it is gone.

    A run that has taken what it needs goes on without the file.
    """
    method = config.method
    path = Path(method.init_from or method.init_mask or "")
    if method.init_from is None or not path.is_file():
        return None
    return backbone(config.network.network).outputs_of(_given(config, path).state)


def own_density(config: Config, typed: Typed) -> Config:
    """The config with the density of a file's mask as its only one, unless others were typed."""
    source = config.method.init_mask or config.method.init_from
    if source is None or "density_list" in typed:
        return config
    masks = _read(Path(source), config.network, None).masks
    kept, total = kept_count(masks), total_count(masks)
    note(f"{source}: its mask keeps {kept:,} of {total:,} weights")
    return replace_flags(config, {"density_list": (density_of(max(kept, 1), total),)})


def _check_asked(source: str, masks: Masks, density: float, floor: float) -> None:
    """Raises UsageError when masks of a file are not of the densities that were asked for.

    VPNsError when they keep nothing.
    """
    kept, total = kept_count(masks), total_count(masks)
    if not kept:
        raise VPNsError(f"{source} holds masks that keep no weight")
    off = kept - count_at(density, total)
    if off and abs(off) <= len(masks):  # others round a layer's share, or all, in another way
        note(f"{source} keeps {kept:,} of {total:,} weights, {off:+} of density {density:g}")
    elif off:
        raise UsageError(f"{source} keeps {kept} of {total} weights, which is not density "
                         f"{density:g}: ask for --density_list {density_of(kept, total)!r}")
    thin = [name for name, share in layer_densities(masks).items() if share < floor]
    if thin:
        named = ", ".join(thin[:5])
        raise UsageError(f"{source} keeps less than --min_layer_density {floor:g} of {named}")


def density_of(kept: int, total: int) -> float:
    """The density with the fewest decimals at which exactly `kept` of `total` weights stay."""
    for decimals in range(1, 17):
        density = round(kept / total, decimals)
        if 0 < density <= 1 and count_at(density, total) == kept:
            return density
    return 1 - (total - kept + 0.5) / total
