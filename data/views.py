"""A view: one way to see one part of the data, in batches that depend on a key alone."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor

from data.augment import Augment
from data.cache import Resized
from data.decoding import threaded
from data.transforms import Crops, draw_crops, to_batch
from utils.ranks import share
from utils.seed import generator

Batch = tuple[Tensor, Tensor]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Look:
    """How a view shows images: resized to `resize_to`, in a drawn order or not."""

    size: int
    resize_to: int
    batch_size: int
    device: torch.device
    shuffled: bool = False
    augmented: bool = False  # cut to a random `size` square, and mirrored with probability 1/2
    more: Augment = Augment()
    whole: bool = False  # each of several processes has all of every batch, and no share of it


class View:
    """Batches of (x, y): x float32 (B, 3, S, S) in [0, 1], y int64 (B,), both on `device`.

    A shuffled view draws its order, crops and flips from (name, *key) alone, the last two by
    image: workers, caches and restarts change nothing. The last batch may be smaller.
    """

    def __init__(self, name: str, pixels: Resized, labels: Tensor, look: Look) -> None:
        self.name, self.labels, self.images = name, labels, len(labels)
        self._pixels, self._look = pixels, look

    def in_batches_of(self, size: int) -> "View":
        """The same images, drawn in the same way, so many at a time."""
        return View(self.name, self._pixels, self.labels, replace(self._look, batch_size=size))

    def whole(self) -> "View":
        """The same batches with labels of their own, all of each of them in every process."""
        look = replace(self.unmixed()._look, whole=True)
        return View(self.name, self._pixels, self.labels, look)

    def identity(self) -> Iterator[bytes]:
        """Bytes that change with the labels or the images."""
        yield self.labels.numpy().tobytes()
        yield from self._pixels.images.identity()

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.images // self._look.batch_size)

    def batches(self, *key: object, start: int = 0) -> Iterator[Batch]:
        """The epoch that `key` names, from batch `start` on. Raises DataError on a damaged file."""
        # Now: between steps a stop waits for its answer.
        copies = self._pixels.copies(self._look.resize_to)
        batches = self._batches(key, start, CPU if copies is None else copies.device)
        device = self._look.device
        batches = batches if device.type == "cpu" else ahead(batches, device)
        return self._augmented(batches, key, start) if self._look.more else batches

    def unmixed(self) -> "View":
        """The same images with their own labels alone."""
        more = replace(self._look.more, mixup=0.0, cutmix=0.0)
        return View(self.name, self._pixels, self.labels, replace(self._look, more=more))

    def _augmented(self, batches: Iterator[Batch], key: tuple, start: int) -> Iterator[Batch]:
        """In the caller's thread, since torchvision draws from torch's global generator."""
        order, _ = self._draw(key)
        seeds = torch.randint(2**62, (self.images,), generator=generator(self.name, *key, "more"))
        for (images, labels), rows in zip(batches, self._parts(order, start), strict=True):
            yield self._look.more(images, labels, seeds[rows])

    def _parts(self, order: Tensor, start: int) -> list[Tensor]:
        """The rows of each batch from `start` on, or this process's share of them."""
        parts = order.split(self._look.batch_size)[start:]
        return list(parts) if self._look.whole else [p for p in map(share, parts) if len(p)]

    def _batches(self, key: tuple, start: int, home: torch.device) -> Iterator[Batch]:
        """An epoch's order, crops and labels go to the `home` of the images at once."""
        order, crops = self._draw(key)
        labels, crops = self.labels.to(home), crops and crops.to(home)
        look, parts = self._look, self._parts(order.to(home), start)
        sources = self._pixels.batches(look.resize_to, parts)
        for part, (pixels, rows) in zip(parts, sources, strict=True):
            x = to_batch(pixels, rows, crops and crops.of(part), look.size, look.device)
            yield x, labels[part].to(look.device, non_blocking=True)

    def _draw(self, key: tuple) -> tuple[Tensor, Crops | None]:
        if not self._look.shuffled:
            return torch.arange(self.images), None
        rng, margin = generator(self.name, *key), self._look.resize_to - self._look.size
        order = torch.randperm(self.images, generator=rng)
        return order, draw_crops(self.images, margin, rng) if self._look.augmented else None


def ahead(items: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same items, each made in a thread while the one before is used.

    On an NVIDIA GPU they are copied and cut on a stream of their own, beside the training step.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream:  # the images themselves may be on their way
        stream.wait_stream(torch.cuda.current_stream(device))

    def make(source: Iterator[Batch]) -> tuple[Batch | None, torch.cuda.Event | None]:
        with torch.cuda.stream(stream) if stream else nullcontext():
            return next(source, None), stream and stream.record_event()

    for _, future in threaded(make, repeat(items), 1, 1):
        item, made = future.result()
        if item is None:
            return
        if made:
            current = torch.cuda.current_stream(device)
            current.wait_event(made)
            for tensor in item:  # whose memory is not to be used again before the step has read it
                tensor.record_stream(current)
        yield item
