"""Resize, crop, flip, to floats: the same bits alone, batched or cached, on any device."""

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

    def to(self, device: torch.device) -> "Crops":
        return Crops(*(tensor.to(device) for tensor in self))


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
    """Write the crops of `pixels[rows]` (uint8, N, C, P, P) into `out` (B, C, S, S), on the CPU."""
    # numpy slices: several times faster here than torch slices or any gather.
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


def to_batch(
    pixels: Tensor, rows: Tensor, crops: Crops | None, size: int, device: torch.device
) -> Tensor:
    """`pixels[rows]`, cropped, as float32 (B, 3, size, size) in [0, 1], made on `device`."""
    if pixels.device.type != "cpu":
        images = pixels[rows.to(device)] if crops is None else cut(pixels, rows, crops, size)
    else:
        # torch keeps pinned memory for reuse and waits for copies in flight
        host = torch.empty((len(rows), pixels.shape[1], size, size), dtype=torch.uint8,
                           pin_memory=device.type == "cuda")  # fmt: skip
        if crops is None:
            torch.index_select(pixels, 0, rows, out=host)
        else:
            cut_into(host, pixels, rows.tolist(), crops)
        images = host.to(device, non_blocking=True)
    images = images.expand(-1, 3, -1, -1).to(torch.float32, memory_format=torch.contiguous_format)
    # By a number CUDA would multiply with its reciprocal, and round otherwise than a CPU does.
    return images.div_(torch.full((), 255.0, device=device))
