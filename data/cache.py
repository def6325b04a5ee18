"""Resized copies of a set of images: kept where they fit the memory limit, else made per batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data.decoding import decode_all, decode_batches
from data.images import ArrayImages, FileImages, Images
from data.transforms import resize
from utils.memory import usable_memory

BLOCK_BYTES = 1 << 22  # resized images stay in the processor's cache until they are cropped


class Block(NamedTuple):
    """Images `rows` of `pixels` (uint8, N, C, P, P); None is all of them."""

    pixels: Tensor
    rows: Tensor | None = None

    @property
    def images(self) -> int:
        return len(self.pixels if self.rows is None else self.rows)


@dataclass
class Room:
    """Bytes that the caches of all sets may still take together; of these, on the device.

    What ends on the device counts as memory too: all sizes of a set are decoded there at once.
    """

    memory: int
    device: torch.device
    on_device: int = 0

    def take(self, size: int) -> torch.device | None:
        """Where `size` bytes fit: on the device if they can, else in memory; None is nowhere."""
        if size > self.memory:
            return None
        self.memory -= size
        if size > self.on_device:
            return torch.device("cpu")
        self.on_device -= size
        return self.device


def room(gigabytes: float | None, device: torch.device) -> Room:
    """The limit asked for; None is a quarter of the memory. A GPU holds up to a quarter of its own.

    The GPU's part is within the limit.
    """
    limit = usable_memory() // 4 if gigabytes is None else int(gigabytes * 1e9)
    if device.type != "cuda":
        return Room(limit, device)
    return Room(limit, device, min(limit, torch.cuda.mem_get_info(device)[0] // 4))


class ResizedArray:
    """Images in memory, resized; copies at a size that fits the room are kept as they are made."""

    def __init__(self, images: ArrayImages, sizes: Sequence[int], space: Room) -> None:
        self.images = images
        self._kept: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}
        count, channels, height, width = images.pixels.shape
        for size in sizes:
            shape = (count, channels, size, size)
            if (height, width) == (size, size):
                self._kept[size] = images.pixels
            elif home := space.take(count * channels * size * size):
                self._kept[size] = torch.empty(shape, dtype=torch.uint8, device=home)
                self._made[size] = torch.zeros(count, dtype=torch.bool)

    def batches(self, size: int, batches: Sequence[Tensor]) -> Iterator[Iterator[Block]]:
        """For each batch of rows, its images at `size` as blocks, in order."""
        for rows in batches:
            yield self._blocks(size, rows)

    def _blocks(self, size: int, rows: Tensor) -> Iterator[Block]:
        for part in rows.split(max(1, BLOCK_BYTES // (self.images.channels * size * size))):
            if size not in self._kept:
                yield Block(self._resize(part, size))
                continue
            if size in self._made:
                self._make(size, part)
            yield Block(self._kept[size], part)

    def _make(self, size: int, rows: Tensor) -> None:
        absent = rows[~self._made[size][rows]]
        if len(absent):
            kept = self._kept[size]
            kept[absent.to(kept.device)] = self._resize(absent, size).to(kept.device)
            self._made[size][absent] = True

    def _resize(self, rows: Tensor, size: int) -> Tensor:
        return resize(self.images.pixels[rows], size)


class ResizedFiles:
    """Image files, decoded once to every size that fits the room, else for every batch."""

    def __init__(self, images: FileImages, sizes: Sequence[int], space: Room, workers: int) -> None:
        self.images, self._workers = images, workers
        self._homes: dict[int, torch.device] = {}
        for size in sizes:
            if home := space.take(len(images) * images.channels * size * size):
                self._homes[size] = home
        self._kept: dict[int, Tensor] = {}

    def batches(self, size: int, batches: Sequence[Tensor]) -> Iterator[Iterator[Block]]:
        """For each batch of rows, its images at `size` as one block."""
        if size in self._homes:
            kept = self._decoded()[size]
            yield from (iter([Block(kept, rows)]) for rows in batches)
            return
        for pixels in decode_batches(self.images, size, self._workers, batches):
            yield iter([Block(pixels)])

    def _decoded(self) -> dict[int, Tensor]:
        if not self._kept:
            kept = decode_all(self.images, tuple(self._homes), self._workers)
            self._kept = {size: pixels.to(self._homes[size]) for size, pixels in kept.items()}
        return self._kept


Resized = ResizedArray | ResizedFiles


def resized(images: Images, sizes: Sequence[int], space: Room, workers: int) -> Resized:
    """The images at each of `sizes`, kept as far as `space` allows."""
    if isinstance(images, ArrayImages):
        return ResizedArray(images, sizes, space)
    return ResizedFiles(images, sizes, space, workers)
