"""Blocks of uint8 images to float batches in [0, 1], on the CPU or on an accelerator."""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import TypeVar

import torch
from torch import Tensor

from data.cache import Block
from data.decoding import threaded
from data.transforms import Crops, cut, cut_into

T = TypeVar("T")
Piece = tuple[Block, Crops | None]


def pieces(blocks: Iterable[Block], crops: Crops | None) -> Iterator[Piece]:
    """Each block with the crops of its images."""
    done = 0
    for block in blocks:
        here = slice(done, done + block.images)
        yield block, crops and crops.of(here)
        done = here.stop


def write(out: Tensor, block: Block, crops: Crops | None) -> None:
    """Write the images of one block to `out` (B, C or 3, S, S), both on the CPU."""
    pixels, rows = block
    if crops is not None:
        cut_into(out, pixels, range(len(pixels)) if rows is None else rows.tolist(), crops)
    else:
        out.copy_(pixels if rows is None else pixels[rows])


def on_cpu(out: Tensor, blocks: Iterable[Block], crops: Crops | None) -> Tensor:
    """Fill `out` (B, 3, S, S; float32), a block at a time while it is in the processor's cache."""
    done = 0
    for block, cuts in pieces(blocks, crops):
        part = out[done : done + block.images]
        write(part, block, cuts)
        part.div_(255)
        done += block.images
    return out


def on_device(size: int, blocks: Iterable[Block], crops: Crops | None,
              device: torch.device) -> Tensor:
    """A batch (B, 3, size, size) on `device`: bytes travel, floats are made there."""
    parts = [_uint8(size, block, cuts, device) for block, cuts in pieces(blocks, crops)]
    batch = torch.cat(parts).expand(-1, 3, -1, -1)
    return batch.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _uint8(size: int, block: Block, crops: Crops | None, device: torch.device) -> Tensor:
    pixels, rows = block
    if pixels.device.type == device.type and rows is not None:
        rows = rows.to(device)
        return pixels[rows] if crops is None else cut(pixels, rows, crops, size)
    shape = (block.images, pixels.shape[1], size, size)
    # torch keeps pinned memory for reuse and waits for copies in flight
    host = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    write(host, block, crops)
    return host.to(device, non_blocking=True)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the one before is used."""
    for _, future in threaded(lambda source: next(source, None), repeat(items), 1, 1):
        if (item := future.result()) is None:
            return
        yield item
