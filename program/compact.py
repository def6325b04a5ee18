"""`--compact`: a finished network without its dead channels, smaller and not only sparser."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import PromptedClassifier
from models.artifact import masks_of
from models.backbones import backbone
from models.compact import compacted
from models.deployed import Deployed, deployed
from models.widths import widths_of
from program.checkpoints import read_checkpoint
from program.export import (
    logits_of,
    made_aside,
    own_outputs,
    target_folder,
    test_images,
    told,
    written,
)
from program.profile import latencies, layers
from program.settings import Config, Typed, chosen_flags, named
from runfolder.level import MODEL
from runfolder.surroundings import environment
from utils.checkpoint import load_model, save_model
from utils.errors import VPNsError, message_of
from utils.files import write_json

PROOF = "compact.json"
BLOCK = 4  # channels: with other numbers ONNX Runtime was slower than with all of them
CLOSE = 1e-5  # of the largest output
IMAGES = 64  # random ones


@torch.no_grad()
def compact(config: Config, typed: Typed) -> dict[str, Any]:
    """Write the network of a model file without its dead channels into the folder `--to`.

    There it is a model file of ours with a table of its widths, a `.pt2`, an ONNX file, labels and
    a card; compact.json has the proof that nothing else has changed, and what was won. Returns the
    RESULT values. Raises UsageError without a folder, VPNsError for a network that torch.export
    does not understand.
    """
    source, folder = Path(config.run.compact), target_folder(config.run, config.run.compact)
    content, own = load_model(source), named(config, typed)
    before, names = deployed(source, *content, config.run.clean, own)
    chosen = chosen_flags(config, typed)
    checkpoint = read_checkpoint(source, chosen)
    flags = {**checkpoint.flags, **chosen}
    tensors, meta = own_outputs(*content)
    network, found = smaller(source, deployed(source, tensors, meta, True, own)[0],
                             partial(differences, checkpoint.model, flags))  # fmt: skip
    tensors = dict(network.state_dict())
    expected = backbone(meta["network"]).skeleton(len(names)).state_dict()
    meta |= {"kept_zeros": {}, "widths": widths_of(expected, tensors)}
    after, _ = deployed(folder / MODEL, tensors, meta, config.run.clean, own)
    pairs = zip(costs(before, *content).items(), costs(after, tensors, meta).values(), strict=True)
    won = {name: [was, now] for (name, was), now in pairs}
    for name, (was, now) in won.items():
        print(f"{name}: {was:,} before, {now:,} now, {was / max(1, now):.2f} times as few")
    proof = {**won, "differences": found, "machine": environment(),
             "milliseconds": latencies({"before ": before, "now ": after}, False)}  # fmt: skip
    with made_aside(folder) as aside:
        save_model(aside / MODEL, tensors, meta)
        write_json(aside / PROOF, proof)
        exported = written(aside / MODEL, tensors, meta, aside, config, typed)
    return {"compacted": str(folder), "bytes": told(folder), **proof, "exported": exported}


def smaller(
    source: Path, model: Deployed, compare: Callable[[nn.Module, int], dict[str, float]]
) -> tuple[nn.Module, dict[str, float]]:
    """The network of a classifier without dead channels, and how far its outputs are from before.

    Constants that norms with hardly a variance have blown up stay: their last digits would show.
    Raises VPNsError where no way leads to equal outputs.
    """
    for constants in (True, False):
        try:
            network = compacted(model.network, model.size, constants, BLOCK)
            found = compare(network, model.size)
        except (RuntimeError, ValueError, AssertionError) as error:  # of code that minds its widths
            problem = message_of(error)[:300]
            continue
        if max(found.values()) <= CLOSE:
            return network, found
        problem = f"its outputs would differ by {max(found.values()):.2g} of the largest"
    raise VPNsError(f"{source} cannot be compacted: {problem}")


def differences(
    before: PromptedClassifier, flags: Mapping[str, Any], network: nn.Module, size: int
) -> dict[str, float]:
    """The largest difference of logits when `network`, with an output a class, takes the place of
    a classifier's; as a share of the largest logit.

    On test images, where there are some, and on random ones; clean, and with the prompt.
    """
    after = copy.deepcopy(before)
    after.network, after.label_map = network, None
    draw = torch.Generator().manual_seed(0)
    shown = {"random": torch.rand(IMAGES, 3, size, size, generator=draw)}
    images, _, where = test_images(flags, size)
    if where:
        shown[where] = images.float() / 255
    found = {}
    for name, images in shown.items():
        for view in ("clean", *["prompted"] * (before.prompt is not None)):
            logits = [logits_of(model, images, view == "prompted") for model in (before, after)]
            largest = logits[0].abs().max().clamp(min=1)
            found[f"{name} {view}"] = float((logits[0] - logits[1]).abs().max() / largest)
    return found


def costs(
    model: Deployed, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> dict[str, int]:
    """Filters, parameters, and multiply-adds for one image, of all weights, zeros too."""
    rows = layers(model, masks_of(tensors, meta))
    filters = sum(len(tensors[name]) for name in meta["masks"])
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    macs = sum(row["macs"] for row in rows)
    return {"filters": filters, "parameters": parameters, "multiply-adds": macs}
