"""Resize, crop, flip: the same bits one by one, batched or cached, on any device."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional


class Crops(NamedTuple):
    """Where each image of a set is cut (top, left; int64) and which are mirrored (bool)."""

    tops: Tensor
    lefts: Tensor
    flips: Tensor

    def of(self, rows: Tensor | slice) -> "Crops":
        return Crops(self.tops[rows], self.lefts[rows], self.flips[rows])


def clean_size(input_size: int) -> int:
    """The side that clean images have before the crop: floor(9/8 * input_size)."""
    return 9 * input_size // 8


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resize of uint8 (B, C, H, W) to a square, ignoring the aspect."""
    return functional.resize(images, [size, size], antialias=True)


def draw_crops(images: int, margin: int, rng: torch.Generator) -> Crops:
    """Crop corners in 0..margin and flips with probability 1/2, one for each image."""
    corners = torch.randint(0, margin + 1, (2, images), generator=rng)
    return Crops(corners[0], corners[1], torch.rand(images, generator=rng) < 0.5)


def cut_into(out: Tensor, pixels: Tensor, rows: Iterable[int], crops: Crops) -> None:
    """Write the crops of `pixels[rows]` (uint8, N, C, P, P) into `out` (B, C or 3, S, S), CPU.

    numpy slices: several times faster here than torch slices or any gather.
    """
    target, source, size = out.numpy(), pixels.numpy(), out.shape[-1]
    corners = zip(crops.tops.tolist(), crops.lefts.tolist(), crops.flips.tolist(), strict=True)
    for i, (row, (top, left, flip)) in enumerate(zip(rows, corners, strict=True)):
        window = source[row, :, top : top + size, left : left + size]
        target[i] = window[:, :, ::-1] if flip else window


def cut(pixels: Tensor, rows: Tensor, crops: Crops, size: int) -> Tensor:
    """The same crops as uint8 (B, C, size, size), gathered on the device of `pixels`."""
    device = pixels.device
    rows, tops, lefts, flips = (t.to(device)[:, None] for t in (rows, *crops))
    along = torch.arange(size, device=device)
    columns = lefts + torch.where(flips, size - 1 - along, along)
    channels = torch.arange(pixels.shape[1], device=device)[None, :, None, None]
    down, across = (tops + along)[:, None, :, None], columns[:, None, None, :]
    return pixels[rows[:, :, None, None], channels, down, across]
