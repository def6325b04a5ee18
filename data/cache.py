"""Resized copies of a set of images: kept where they fit the memory limit, else made per batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.decoding import BATCH, at_sizes
from data.images import Images
from utils.memory import usable_memory
from utils.ranks import on_this_machine, share
from utils.together import least, made_in_turn


@dataclass
class Room:
    """Bytes that the copies of all sets may still take together; of these, on the device."""

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
    """The limit asked for (None: a quarter of the memory), divided by the processes of a machine.

    Up to a quarter of a GPU's own memory is within it.
    """
    limit = usable_memory() // 4 if gigabytes is None else int(gigabytes * 1e9)
    limit = least(limit // on_this_machine()[1])
    if device.type != "cuda":
        return Room(limit, device)
    return Room(limit, device, least(min(limit, torch.cuda.mem_get_info(device)[0] // 4)))


class Resized:
    """Images at some sizes: copies that fit the room are made once, others for every batch."""

    def __init__(self, images: Images, sizes: Sequence[int], space: Room, workers: int) -> None:
        self.images, self._workers = images, workers
        pixels = len(images) * images.channels
        self._homes = {size: home for size in sizes if (home := space.take(pixels * size * size))}
        self._copies: dict[int, Tensor] = {}

    def batches(self, size: int, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch of rows: pixels (uint8, N, C, size, size), and its rows of them."""
        if (copies := self.copies(size)) is not None:
            yield from ((copies, rows) for rows in batches)
            return
        for (pixels,) in at_sizes(self.images, (size,), batches, self._workers):
            yield pixels, torch.arange(len(pixels))

    def copies(self, size: int) -> Tensor | None:
        """The copies at `size`, None where they do not fit; the first call makes all together."""
        if size in self._homes and not self._copies:
            self._copies = self._make()
        return self._copies.get(size)

    def _make(self) -> dict[int, Tensor]:
        count, channels = len(self.images), self.images.channels
        copies = {size: torch.empty((count, channels, size, size), dtype=torch.uint8, device=home)
                  for size, home in self._homes.items()}  # fmt: skip
        parts = {size: pixels.split(BATCH) for size, pixels in copies.items()}
        batches = share(torch.arange(count).split(BATCH))
        stream = at_sizes(self.images, tuple(copies), batches, self._workers)
        for number, resized in enumerate(stream):
            for size, pixels in zip(copies, resized, strict=True):
                share(parts[size])[number].copy_(pixels)
        for of_a_size in parts.values():
            made_in_turn(of_a_size)
        return copies
