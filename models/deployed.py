"""A finished network as others use it: images of any size in, probabilities of the classes out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import backbone, network_of, runs_code
from utils.checkpoint import load_model, unpack_tensor
from utils.errors import UsageError, VPNsError
from utils.tensors import understood

LARGEST = 4096  # pixels of a side


class Deployed(nn.Module):
    """Resizes, adds the finished prompt, normalises, and maps the labels.

    uint8 images (B, 3, H, W), or floats in [0, 1], to probabilities (B, C). `pixels` (3, S, S) is
    the prompt, None for clean images; `label_map` (C,) an output for each class, None for all.
    """

    def __init__(
        self, network: nn.Module, size: int, mean: Sequence[float], std: Sequence[float],
        pixels: Tensor | None, label_map: Sequence[int] | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.register_buffer("pixels", pixels)
        self.register_buffer("label_map", None if label_map is None else torch.tensor(label_map))

    def forward(self, images: Tensor) -> Tensor:
        """As the class says. The size of the images may differ from batch to batch."""
        scale = 1 if images.dtype == torch.uint8 else 255
        sides = (self.size, self.size)
        x = F.interpolate(images.float() * scale, sides, mode="bilinear", antialias=True)
        x = x.round().clamp(0, 255) / 255  # as resized bytes
        if self.pixels is not None:
            free = self.pixels.shape[-1] - self.size
            before, after = (free + 1) // 2, free // 2
            x = (F.pad(x, (before, after, before, after)) + self.pixels).clamp(0, 1)
        logits = self.network((x - self.mean) / self.std)
        return (logits if self.label_map is None else logits[:, self.label_map]).softmax(1)


def load_pruned(
    path: str | Path, clean: bool = False, network: str | None = None
) -> tuple[Deployed, tuple[str, ...]]:
    """The classifier in a model file, in eval mode, and the names of its classes.

    `clean` leaves the prompt out. A file without names numbers its classes. A network of your own
    code is made only when `network` names it too. Raises VPNsError for another file, and for one
    with a prompt that an older version has written.
    """
    path = Path(path)
    return deployed(path, *load_model(path), clean, network)


def deployed(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], clean: bool,
    network: str | None,
) -> tuple[Deployed, tuple[str, ...]]:  # fmt: skip
    """What `load_pruned` makes, from the content of the file at `path`."""
    with understood(path):
        name, packed, colours = meta["network"], meta.get("prompt_pixels"), meta["normalisation"]
        if runs_code(name) and name != network:
            raise UsageError(f"{path} was made with your code {name!r}: name it as the network")
        if meta["program"] is not None and packed is None and not clean:
            raise VPNsError(f"{path} is of an older version, which kept no finished prompt: run "
                            "its command again, or use it clean")
        side, canvas = meta["sizes"]["input"], meta["sizes"]["output"]
        if not (type(side) is type(canvas) is int and 0 < side <= LARGEST >= canvas):
            raise ValueError(f"images of {side} and a canvas of {canvas} pixels")
        pixels = None if clean or packed is None else unpack_tensor(packed)
        if pixels is not None and (pixels.shape != (3, canvas, canvas) or side > canvas):
            raise ValueError(f"a prompt of shape {tuple(pixels.shape)} around {side} pixels")
        widths = meta.get("widths")
        row, label_map = backbone(name, widths), meta["label_map"]
        row.skeleton_of(tensors)
        outputs = row.outputs_of(tensors)
        places = range(outputs) if label_map is None else label_map
        names = tuple(map(str, meta.get("classes") or range(len(places))))
        known = all(type(place) is int and 0 <= place < outputs for place in places)
        if len(names) != len(places) or not known:
            raise ValueError(f"{len(names)} names for {len(places)} of {outputs} outputs")
        made = network_of(name, tensors, str(path), widths=widths)
        mean, std = colours["mean"], colours["std"]
        model = Deployed(made, side, mean, std, pixels, label_map)
    return model.eval(), names
