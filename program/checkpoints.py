"""Checkpoints as classifiers: model files and states of ours, files of the authors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import SPECS
from models import PromptedClassifier
from models.artifact import restore
from models.backbones import backbone, network_of, own_state, runs_code, weights_file
from models.foreign import ForeignPrompt, read_authors
from models.pretrained import few, is_here
from program.model import around, classifier, fitting_masks, pruning_rule
from program.settings import Config, complete
from prompts import Sizes, build_prompt
from pruning.granularity import CHANNEL, ChannelRule
from pruning.masks import apply_masks, in_shapes, kept_count, prunable, total_count
from utils.checkpoint import has_meta, read_meta
from utils.config import check_flags, replace_flags
from utils.counts import count_at
from utils.errors import UsageError
from utils.files import is_amount, require_amounts
from utils.tensors import load_into, read_tensors, understood

# What a file may say of itself: how its network is built and shown images. Where data lie, what is
# fetched, how many images or threads at a time: flags and the program's own bounds decide.
SAYS = frozenset((
    "network", "normalisation", "dataset", "weights", "seed", "label_mapping_mode",
    "granularity", "min_layer_density", "prompt_method", "prune_mode", "prune_method", "input_size",
    "output_size", "pad_size", "mask_size", "amp", "channels_last", "tf32", "full_float32",
))  # fmt: skip

BEST = ("best_prec1", "best_acc1", "best_acc", "best_top1")  # of scripts that many have used
NETWORK = "network."  # before the names of its tensors in a state


@dataclass(frozen=True)
class Checkpoint:
    """A classifier read from a file, its masks, and the flags that it was made with."""

    model: PromptedClassifier
    masks: Mapping[str, Tensor]
    flags: Mapping[str, Any]
    claimed: float | None = None  # the accuracy that the file itself states, percent
    notes: tuple[str, ...] = ()
    ours: bool = True


def completed(flags: Mapping[str, Any]) -> Config:
    """The defaults with these flags, completed."""
    return complete(replace_flags(Config(), flags))


def read_checkpoint(path: Path, flags: Mapping[str, Any]) -> Checkpoint:
    """A model file or state of ours, a file of the authors, or any network's weights.

    They are told apart by what they hold.
    """
    tensors = read_tensors(path)
    with understood(path):
        if has_meta(path):
            checkpoint = _read_model(tensors, read_meta(path), flags)
        elif {"stage", "tensors", "config"} <= tensors.keys():
            checkpoint = _read_state(path, tensors, flags)
        elif {"mapping_sequence", "visual_prompt"} & tensors.keys():
            checkpoint = _read_authors(path, tensors, flags)
        else:
            checkpoint = _read_plain(path, tensors, flags)
        backbone(checkpoint.flags["network"])
        checkpoint.model.check_map()
        mapped = checkpoint.model.label_map is not None
        if mapped != (checkpoint.flags.get("label_mapping_mode", "flm") != "none"):
            raise ValueError("its label map and its --label_mapping_mode disagree")
    _check_typed(path, checkpoint, flags)
    return checkpoint


def _check_typed(path: Path, checkpoint: Checkpoint, flags: Mapping[str, Any]) -> None:
    """Raises UsageError when the file holds another network or density than was typed.

    The authors' ties are pruned, so that their files may keep fewer than a density says.
    """
    network, density = checkpoint.flags["network"], flags.get("density")
    if flags.get("network", network) != network:
        raise UsageError(f"{path} holds a {network}, not a {flags['network']}: drop --network")
    kept, total = kept_count(checkpoint.masks), total_count(checkpoint.masks)
    exact = checkpoint.ours and density is not None
    if exact and kept != count_at(density, total):
        raise UsageError(f"{path} keeps {kept:,} of {total:,} weights, which is not density "
                         f"{density:g}: drop --density")


def _read_model(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], typed: Mapping[str, Any]
) -> Checkpoint:
    sizes, program = Sizes(**meta["sizes"]), meta["program"]
    result, flags = meta.get("result", {}), _known_flags(meta["config"], typed)
    config = completed(flags)  # whose sizes are bounded
    built = (meta["network"], meta["dataset"], meta["prompt"], sizes)
    if built != (config.network.network, config.data.dataset, config.prompt.prompt_method,
                 config.sizes):  # fmt: skip
        raise ValueError("its network, dataset, prompt or sizes are not those of its flags")
    masks = fitting_masks(meta["network"], tensors, meta)
    head = backbone(meta["network"]).outputs_of(tensors)
    if program is not None:
        _check_canvas(program["shape"], sizes.output)
    prompt = None if program is None else build_prompt(meta["prompt"], sizes)
    model = classifier(config.network, "none", head, prompt, widths=meta.get("widths"))
    restore(model, tensors, meta)
    claimed = result.get("clean")
    if claimed is not None:
        require_amounts(result, "clean", most=100)
    return Checkpoint(model, masks, flags, claimed)


def _read_state(path: Path, state: Mapping[str, Any], typed: Mapping[str, Any]) -> Checkpoint:
    """A training state: the named tensors over the source weights, masked by the scores if any."""
    flags = _known_flags(state["config"], typed)
    if "weights" in typed:
        flags["weights"] = typed["weights"]
    config, values = completed(flags), dict(state["tensors"])
    scores, theta = values.pop("scores", None), values.pop("theta", None)
    mapped = values.pop("label_map", None)
    if "prompt.program" in values:
        _check_canvas(values["prompt.program"].shape, config.prompt.output_size)
    over_source = theta is None and scores is not None
    source = config.network.weights if over_source else "none"
    if over_source and "weights" not in typed:
        _require_at_hand(path, config.network.network, source, state["config"].get("from_dense"))
    head = _state_head(config, values, scores)
    # A stage that shows no prompt has none in its states, and is measured without.
    prompt = config.build_prompt() if "prompt.program" in values else None
    model = classifier(config.network, source, head, prompt, config.run.seed)
    weights = prunable(model.network)
    # A search trains scores over the source weights; every other stage has weights of its own.
    given = weights if theta is not None else dict(model.network.named_parameters())
    given = {f"{NETWORK}{name}" for name in given if scores is not None}
    lacking = [name for name in model.state_dict() if name not in values.keys() | given]
    if lacking:
        raise ValueError(f"no values of {few(lacking)}")
    load_into(model, values, strict=False)
    model.label_map = mapped
    if theta is not None:  # BiP's dense weights, which its search trains beside the network
        for name, part in in_shapes(theta, weights).items():
            weights[name].data.copy_(part)
    if scores is None:
        return Checkpoint(model, {name: weight != 0 for name, weight in weights.items()}, flags)
    rule, floor = pruning_rule(config, model.network), config.method.min_layer_density
    if isinstance(rule, ChannelRule):
        kept = rule.select(scores.abs(), state["density"], floor)
        masks = rule.masks(kept, weights)
    else:
        masks = rule(in_shapes(scores.abs(), weights), state["density"], floor)
    apply_masks(model.network, masks)
    return Checkpoint(model, masks, flags)


def _require_at_hand(path: Path, network: str, weights: str, from_dense: bool | None) -> None:
    """Raises UsageError when a file would have other files read or fetched."""
    of_file = weights_file(network, weights) is not None
    away = of_file or weights != "none" and not is_here(backbone(network).source)
    if from_dense or away:
        whose = "of its run's dense network" if from_dense else repr(weights)
        raise UsageError(f"{path} holds scores over the weights {whose}: name these with "
                         "--weights, so that they are read")


def _state_head(config: Config, values: Mapping[str, Tensor], scores: Tensor | None) -> int | None:
    """The outputs of the network in a state; None for the source head."""
    row = backbone(config.network.network)
    if scores is None:
        own = {n.removeprefix(NETWORK): t for n, t in values.items() if n.startswith(NETWORK)}
        row.skeleton_of(own)
        return row.outputs_of(own)
    if config.method.label_mapping_mode != "none":
        return None
    if config.method.granularity == CHANNEL:
        classes = SPECS[config.data.dataset].classes
        if classes is None:
            raise UsageError("a state of a search for channels does not tell how many classes it "
                             "has: let the search end")
        return classes
    # A search state has scores instead of weights: what one output would need, and the rest.
    weights = prunable(row.skeleton(1))
    one = sum(weight.numel() for weight in weights.values())
    return 1 + (scores.numel() - one) // weights[f"{row.head}.weight"].numel()


def _check_canvas(shape: Sequence[int], side: int) -> None:
    """Raises ValueError unless a file's prompt has its stated size; none is made before."""
    if tuple(shape) != (3, side, side):
        raise ValueError(f"a prompt of shape {tuple(shape)} for a canvas of {side} pixels")


def _read_authors(path: Path, file: dict[str, Any], flags: Mapping[str, Any]) -> Checkpoint:
    foreign = read_authors(path, prunable, flags.get("density"), file)
    if "dataset" not in flags:
        raise UsageError(f"{path} does not say its dataset: name it with --dataset")
    flags = {"network": foreign.network}
    config = completed(flags | _prompt_flags(foreign.prompt))
    prompt = build_prompt(config.prompt.prompt_method, config.sizes)
    model = classifier(config.network, "none", None, prompt)
    load_into(model.network, foreign.state_dict)
    if model.prompt is not None:
        with torch.no_grad():
            model.prompt.program.copy_(foreign.prompt.program)
    model.label_map = foreign.label_map
    claimed = None if foreign.claimed_accuracy is None else 100 * foreign.claimed_accuracy
    return Checkpoint(model, foreign.masks, flags, claimed, foreign.notes, ours=False)


def _read_plain(path: Path, file: Mapping[str, Any], flags: Mapping[str, Any]) -> Checkpoint:
    """A network as somebody's training has saved it: its zeros are its mask."""
    for name in ("network", "dataset"):
        if name not in flags:
            raise UsageError(f"{path} does not say its {name}: name it with --{name}")
    name = flags["network"]
    state = own_state(path, file, backbone(name), flags.get("weights_key"))
    model = around(name, network_of(name, state, str(path)), None, flags.get("normalisation"))
    masks = {name: weight != 0 for name, weight in prunable(model.network).items()}
    known = {"network": name, "prompt_method": "none", "label_mapping_mode": "none"}
    return Checkpoint(model, masks, known, _best_of(file), ours=False)


def _best_of(file: Mapping[str, Any]) -> float | None:
    """The accuracy that a training script has noted, percent."""
    said = [file[name] for name in BEST if is_amount(file.get(name)) and file[name] <= 100]
    return round(float(said[0]), 4) if said else None


def _prompt_flags(prompt: ForeignPrompt | None) -> dict[str, Any]:
    """The flags that build an empty prompt of the same kind and size."""
    if prompt is None:
        return {"prompt_method": "none"}
    size = {"pad": "pad_size", "fix": "mask_size", "expand": "input_size"}.get(prompt.kind)
    known = {"prompt_method": prompt.kind, "output_size": prompt.program.shape[-1]}
    return known | ({size: prompt.size} if size else {})


def _known_flags(flags: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that a file may decide. Raises ValueError for a value that nobody could type.

    Code of the user's own makes a network only when the user names it.
    """
    network = str(flags.get("network"))
    if runs_code(network) and typed.get("network") != network:
        raise UsageError(f"the file was made with your code {network!r}: name it with --network")
    known = {n: tuple(v) if isinstance(v, list) else v for n, v in flags.items() if n in SAYS}
    check_flags(Config(), known)
    return known
