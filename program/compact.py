"""`--compact`: a finished network without its dead channels, smaller and not only sparser."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import PromptedClassifier
from models.artifact import masks_of
from models.backbones import backbone
from models.compact import compacted
from models.deployed import Deployed, deployed
from models.widths import widths_of
from program.checkpoints import read_checkpoint
from program.export import own_outputs, test_images, told, written
from program.profile import latencies, layers
from program.settings import Config, Typed, named
from utils.checkpoint import load_model, save_model
from utils.config import flatten
from utils.errors import UsageError, VPNsError, message_of
from utils.files import write_json

MODEL, PROOF = "model.safetensors", "compact.json"
CLOSE = 1e-5  # of the largest output
BATCH = 64


@torch.no_grad()
def compact(config: Config, typed: Typed) -> dict[str, Any]:
    """Write the network of a model file without its dead channels into the folder `--to`.

    There it is a model file of ours with a table of its widths, a `.pt2`, an ONNX file, labels and
    a card; compact.json has the proof that nothing else has changed, and what was won. Returns the
    RESULT values. Raises UsageError without a folder, VPNsError for a network that torch.export
    does not understand.
    """
    run = config.run
    if run.to is None:
        raise UsageError("--compact needs a folder: give it with --to")
    source, target = Path(run.compact), Path(run.to) / MODEL
    content = load_model(source)
    dense, names = deployed(source, *content, run.clean, named(config, typed))
    tensors, meta = own_outputs(*content)
    own, _ = deployed(source, tensors, meta, run.clean, named(config, typed))
    try:
        network = compacted(own.network, own.size)
    except Exception as error:  # torch.export has many
        raise VPNsError(f"{source} cannot be compacted: {message_of(error)[:300]}") from error
    smaller = dict(network.state_dict())
    expected = backbone(meta["network"]).skeleton(len(names)).state_dict()
    meta |= {"kept_zeros": {}, "widths": widths_of(expected, smaller)}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_model(target, smaller, meta)
    small, _ = deployed(target, smaller, meta, run.clean, named(config, typed))
    chosen = {name: value for name, value in flatten(config).items() if name in typed}
    before, after = (read_checkpoint(path, chosen) for path in (source, target))
    found = differences(before.model, after.model, {**before.flags, **chosen}, own.size)
    if max(found.values()) > CLOSE:
        raise VPNsError(f"{target} differs by {found} from {source}: a bug")
    pairs = zip(costs(dense, *content).items(), costs(small, smaller, meta).values(), strict=True)
    won = {name: [was, now] for (name, was), now in pairs}
    for name, (was, now) in won.items():
        print(f"{name}: {was:,} before, {now:,} now, {was / max(1, now):.2f} times as few")
    times = latencies({"before ": dense, "now ": small})
    proof = {**won, "differences": found, "milliseconds": times, "processor": platform.processor(),
             "threads": torch.get_num_threads()}  # fmt: skip
    write_json(target.with_name(PROOF), proof)
    exported = written(target, target.parent, config, typed)
    return {"compacted": str(target.parent), "bytes": told(target.parent), **proof,
            "exported": exported}  # fmt: skip


def differences(
    before: PromptedClassifier, after: PromptedClassifier, flags: Mapping[str, Any], size: int
) -> dict[str, float]:
    """The largest difference of two networks' logits, as a share of the largest logit.

    On test images, where there are some, and on random ones; clean, and with the prompt.
    """
    draw = torch.Generator().manual_seed(0)
    shown = {"random": torch.rand(BATCH, 3, size, size, generator=draw)}
    images, _, where = test_images(flags, size)
    if where:
        shown[where] = images.float() / 255
    found = {}
    for name, images in shown.items():
        for view in ("clean", *["prompted"] * (before.prompt is not None)):
            logits = [_logits(model, images, view == "prompted") for model in (before, after)]
            largest = logits[0].abs().max().clamp(min=1)
            found[f"{name} {view}"] = float((logits[0] - logits[1]).abs().max() / largest)
    return found


def _logits(model: PromptedClassifier, images: Tensor, prompted: bool) -> Tensor:
    return torch.cat([model.eval()(part, prompted) for part in images.split(BATCH)])


def costs(
    model: Deployed, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> dict[str, int]:
    """Filters, parameters, and multiply-adds for one image, of all weights, zeros too."""
    rows = layers(model, masks_of(tensors, meta))
    filters = sum(len(tensors[name]) for name in meta["masks"])
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    macs = sum(row["macs"] for row in rows)
    return {"filters": filters, "parameters": parameters, "multiply-adds": macs}
