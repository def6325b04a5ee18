"""Image files to resized uint8 tensors, in worker processes."""

import atexit
import multiprocessing
import os
import signal
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.images import FileImages
from data.picture import decode
from data.transforms import resize
from utils.errors import DataError
from utils.signals import signals_later

BATCH = 64  # images that a worker decodes at a time when the whole set is decoded


class Files(Dataset):
    """Lists of rows to their images, at each of `sizes`: uint8 (B, 3, size, size).

    An error is returned as its message: torch would wrap an exception in many lines.
    """

    def __init__(self, images: FileImages, sizes: Sequence[int]) -> None:
        self.images, self.sizes = images, tuple(sizes)

    def __getitem__(self, rows: Sequence[int]) -> list[Tensor] | str:
        shapes = [(len(rows), 3, size, size) for size in self.sizes]
        out = [torch.empty(shape, dtype=torch.uint8) for shape in shapes]
        for i, row in enumerate(rows):
            try:
                pixels = decode(self.images.path(row))[None]
            except DataError as error:
                return str(error)
            for tensor, size in zip(out, self.sizes, strict=True):
                tensor[i] = resize(pixels, size)[0]
        return out


class Order(Sampler):
    """The batches of rows of the next epoch: persistent workers read them at its start."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def quiet_worker(_: int) -> None:
    """Leave Ctrl-C and signals to the whole job to the main process, which ends its workers.

    They come to the process group or, from systemd for one, to each process: a worker that died of
    them would fail the step that the main process has yet to finish and save.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_heed_parent, daemon=True).start()
    with suppress(OSError):
        os.setpgid(0, 0)
    if multiprocessing.get_start_method() == "fork" and os.getppid() != _parent():
        # torch's own watch begins later: it would take whoever has adopted this one for its parent.
        os._exit(0)


def _parent() -> int:
    """The process that started this one."""
    return multiprocessing.parent_process().pid


def _heed_parent() -> None:
    """End when the main process, and nobody else, says so."""
    parent = _parent()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class Loader(DataLoader):
    """A DataLoader whose workers are started without a signal in between."""

    def __iter__(self) -> Iterator[Any]:
        with signals_later():
            return super().__iter__()


def loader(items: Dataset, order: Order, **options: object) -> DataLoader:
    """A loader of what `items` has for each of the batches of `order`."""
    return Loader(items, None, sampler=order, worker_init_fn=quiet_worker, **options)


def checked(tensors: list[Tensor] | str) -> list[Tensor]:
    """What a worker returned, or its error raised here."""
    if isinstance(tensors, str):
        raise DataError(tensors)
    return tensors


def decode_all(images: FileImages, sizes: Sequence[int], workers: int) -> dict[int, Tensor]:
    """Every image at each of `sizes`, from one decoding: {size: uint8 (N, 3, size, size)}."""
    shapes = {size: (len(images), 3, size, size) for size in sizes}
    kept = {size: torch.empty(shape, dtype=torch.uint8) for size, shape in shapes.items()}
    order, parts = Order(), torch.arange(len(images)).split(BATCH)
    order.batches = [part.tolist() for part in parts]
    decoded = loader(Files(images, sizes), order, num_workers=workers)
    for part, tensors in zip(parts, decoded, strict=True):
        for size, tensor in zip(sizes, checked(tensors), strict=True):
            kept[size][part] = tensor
    return kept


class Stream:
    """Image files decoded batch by batch with workers that stay alive between epochs."""

    def __init__(self, images: FileImages, size: int, workers: int, pin: bool) -> None:
        self._files, self._busy = Files(images, (size,)), False
        self._options = {"num_workers": workers, "pin_memory": pin}
        self._order = Order()
        stay = {"persistent_workers": workers > 0}
        self._loader = loader(self._files, self._order, **self._options, **stay)
        self._open: weakref.WeakSet[Iterator[Tensor]] = weakref.WeakSet()
        STREAMS.add(self)

    def batches(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """For each batch of rows, its images as uint8 (B, 3, size, size)."""
        made = self._made([part.tolist() for part in batches])
        self._open.add(made)
        return made

    def close(self) -> None:
        """End the iterations and the workers."""
        for made in list(self._open):
            with suppress(ValueError):  # it is running, in a thread
                made.close()
        del self._loader

    def _made(self, batches: list[list[int]]) -> Iterator[Tensor]:
        if self._busy:  # a loader serves one iteration at a time: this one gets its own workers
            order = Order()
            order.batches = batches
            yield from self._read(loader(self._files, order, **self._options))
            return
        self._busy, self._order.batches = True, batches
        try:
            yield from self._read(self._loader)
        finally:
            self._busy = False

    def _read(self, decoded: DataLoader) -> Iterator[Tensor]:
        for tensors in decoded:
            yield checked(tensors)[0]


STREAMS: weakref.WeakSet[Stream] = weakref.WeakSet()


@atexit.register
def close_streams() -> None:
    """End the workers before multiprocessing kills them, which torch reports as a failure."""
    for stream in list(STREAMS):
        stream.close()
