"""`--evaluate`: measure a checkpoint of ours, of the authors, or of the model zoo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import load_data
from models import PromptedClassifier, build_network
from models.artifact import masks_of, restore
from models.backbones import NETWORKS, backbone
from models.foreign import ForeignPrompt, read_authors
from models.zoo import ZOO, fetch
from program.settings import Config, complete, model_flags
from prompts import Sizes, build_prompt
from pruning.masks import (
    Masks,
    apply_masks,
    keep_top,
    kept_count,
    prunable,
    pruned_count,
    total_count,
)
from pruning.measure import evaluate
from utils.config import check_flags, flatten, replace_flags
from utils.errors import UsageError
from utils.model_file import read_meta
from utils.tensors import read_tensors, understood

UNCOMPILED = {"compile": False}  # unless typed: one look at the test images does not repay it
WHOLE = {"train_images": 0, "val_fraction": 0.0}  # the part that is trained on has no say here


@dataclass(frozen=True)
class Checkpoint:
    """A classifier read from a file, its masks, and the flags that it was made with."""

    model: PromptedClassifier
    masks: Masks
    flags: Mapping[str, Any]
    claimed: float | None = None  # the accuracy that the file itself states, percent
    notes: tuple[str, ...] = ()
    ours: bool = True


def evaluate_checkpoint(config: Config, typed: set[str], device: torch.device) -> dict[str, Any]:
    """Clean and prompted accuracy, real sparsity and number of images of a checkpoint.

    Flags that were typed win over those in the file. Raises VPNsError for a file that cannot be
    had, read or understood, DataError for missing data.
    """
    source = config.run.evaluate
    path = fetch(source)
    chosen = {name: value for name, value in flatten(config).items() if name in typed}
    entry = ZOO.get(source)
    known = {} if entry is None else {"dataset": entry.dataset, "density": entry.density}
    checkpoint = read_checkpoint(path, known | chosen)
    flags = {**checkpoint.flags, **UNCOMPILED, **known, **chosen, **WHOLE}
    config = complete(replace_flags(Config(), flags))
    config.precision.begin(device)
    model = checkpoint.model.to(device)
    model.use(config.precision)
    data = load_data(config.data, config.data.input_size, config.data.batch_size, device)
    data = data.measured_in(config.measured_batch)
    if model.classes != len(data.classes):
        raise UsageError(
            f"{path} tells {model.classes} classes apart, {config.data.dataset} has "
            f"{len(data.classes)}: name its dataset with --dataset"
        )
    clean = evaluate(model, data.test)
    prompted = None if model.prompt is None else evaluate(model, data.test, prompted=True)
    kept, total = kept_count(checkpoint.masks), total_count(checkpoint.masks)
    return {
        "checkpoint": str(path),
        "network": config.network.network,
        "dataset": config.data.dataset,
        "clean": round(clean.accuracy, 4),
        "prompted": prompted and round(prompted.accuracy, 4),
        "claimed": checkpoint.claimed,
        "kept": kept,
        "prunable": total,
        "sparsity": round(1 - kept / total, 9),
        "images": clean.seen,
        "notes": [*checkpoint.notes, *data.notes],
    }


def read_checkpoint(path: Path, flags: Mapping[str, Any]) -> Checkpoint:
    """A model file or state of ours, or a file of the authors, told apart by what it holds."""
    tensors = read_tensors(path)
    with understood(path):
        if path.suffix == ".safetensors":
            found = _read_model(tensors, read_meta(path))
        elif {"stage", "tensors", "config"} <= tensors.keys():
            found = _read_state(tensors)
        else:
            found = _read_authors(path, tensors, flags)
        backbone(found.flags["network"])
        found.model.check_map()
    _check_typed(path, found, flags)
    return found


def _check_typed(path: Path, found: Checkpoint, flags: Mapping[str, Any]) -> None:
    """Raises UsageError when the file holds another network or density than was typed.

    The authors' ties are pruned, so that their files may keep fewer than a density says.
    """
    network, density = found.flags["network"], flags.get("density")
    if flags.get("network", network) != network:
        raise UsageError(f"{path} holds a {network}, not a {flags['network']}: drop --network")
    kept, total = kept_count(found.masks), total_count(found.masks)
    if found.ours and density is not None and kept != total - pruned_count(total, density):
        raise UsageError(
            f"{path} keeps {kept:,} of {total:,} weights, which is not density {density:g}: drop "
            "--density"
        )


def _read_model(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Checkpoint:
    head = len(tensors[f"{NETWORKS[meta['network']].head}.weight"])
    sizes, program = Sizes(**meta["sizes"]), meta["program"]
    if program is not None:
        _check_canvas(program["shape"], sizes.output)
    kind = "none" if program is None else meta["prompt"]
    model = _classifier(meta["network"], head, kind, sizes)
    restore(model, tensors, meta)
    claimed = meta.get("result", {}).get("clean")
    flags = _known_flags(model_flags(meta["config"]))
    return Checkpoint(model, masks_of(tensors, meta), flags, claimed)


def _read_state(state: Mapping[str, Any]) -> Checkpoint:
    """A training state: the named tensors over the source weights, masked by the scores if any."""
    flags = _known_flags(state["config"])
    config = replace_flags(Config(), flags)
    values = dict(state["tensors"])
    scores, theta = values.pop("scores", None), values.pop("theta", None)
    mapped = values.pop("label_map", None)
    if "prompt.program" in values:
        _check_canvas(values["prompt.program"].shape, config.prompt.output_size)
    row = backbone(config.network.network)
    source = config.network.weights if theta is None and scores is not None else "none"
    head = _state_head(config, values, scores)
    network = build_network(config.network.network, source, head, config.run.seed)
    model = PromptedClassifier(network, config.build_prompt(), row.mean, row.std)
    model.load_state_dict(values, strict=False)
    model.label_map = mapped
    weights = prunable(network)
    if theta is not None:  # BiP's dense weights, which its search trains beside the network
        for name, part in _parts(theta, weights).items():
            weights[name].data.copy_(part)
    if scores is None:
        return Checkpoint(model, {name: weight != 0 for name, weight in weights.items()}, flags)
    floor = config.method.min_layer_density
    masks = keep_top(_parts(scores.abs(), weights), state["density"], floor)
    apply_masks(network, masks)
    return Checkpoint(model, masks, flags)


def _parts(flat: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A flat tensor of a state (N,) in the shapes of the weights, by parameter name."""
    parts = flat.split([weight.numel() for weight in weights.values()])
    pairs = zip(weights.items(), parts, strict=True)
    return {name: part.view(weight.shape) for (name, weight), part in pairs}


def _state_head(
    config: Config, values: Mapping[str, Tensor], scores: Tensor | None
) -> int | None:
    """The outputs of the network in a state; None for the source head."""
    row = backbone(config.network.network)
    if scores is None:
        return len(values[f"network.{row.head}.weight"])
    if config.method.label_mapping_mode != "none":
        return None
    # A search state has scores instead of weights: what one output would need, and the rest.
    with torch.device("meta"):
        weights = prunable(row.build(1))
    one = sum(weight.numel() for weight in weights.values())
    return 1 + (scores.numel() - one) // weights[f"{row.head}.weight"].numel()


def _check_canvas(shape: Sequence[int], side: int) -> None:
    """Compare the prompt that a file holds with its stated size, before one of that size is made.

    Raises ValueError when they differ.
    """
    if tuple(shape) != (3, side, side):
        raise ValueError(f"a prompt of shape {tuple(shape)} for a canvas of {side} pixels")


def _read_authors(path: Path, file: dict[str, Any], flags: Mapping[str, Any]) -> Checkpoint:
    foreign = read_authors(path, prunable, flags.get("density"), file)
    if "dataset" not in flags:
        raise UsageError(f"{path} does not say its dataset: name it with --dataset")
    shown = _prompt_flags(foreign.prompt)
    config = complete(replace_flags(Config(), {"network": foreign.network} | shown))
    model = _classifier(foreign.network, None, config.prompt.prompt_method, config.sizes)
    model.network.load_state_dict(foreign.state_dict)
    if model.prompt is not None:
        with torch.no_grad():
            model.prompt.program.copy_(foreign.prompt.program)
    model.label_map = foreign.label_map
    claimed = None if foreign.claimed_accuracy is None else 100 * foreign.claimed_accuracy
    flags = {"network": foreign.network}
    return Checkpoint(model, foreign.masks, flags, claimed, foreign.notes, ours=False)


def _prompt_flags(prompt: ForeignPrompt | None) -> dict[str, Any]:
    """The flags that build an empty prompt of the same kind and size."""
    if prompt is None:
        return {"prompt_method": "none"}
    size = {"pad": "pad_size", "fix": "mask_size", "expand": "input_size"}.get(prompt.kind)
    known = {"prompt_method": prompt.kind, "output_size": prompt.program.shape[-1]}
    return known | ({size: prompt.size} if size else {})


def _classifier(name: str, head: int | None, kind: str, sizes: Sizes) -> PromptedClassifier:
    row = backbone(name)
    network = build_network(name, "none", head)
    return PromptedClassifier(network, build_prompt(kind, sizes), row.mean, row.std)


def _known_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of a file that this version has; lists come back as tuples.

    Raises ValueError for a value that could not have been typed.
    """
    own = flatten(Config())
    found = {n: tuple(v) if isinstance(v, list) else v for n, v in flags.items() if n in own}
    check_flags(Config(), found)
    return found
