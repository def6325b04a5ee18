"""Image files to resized uint8 tensors, in threads: PIL and torch let go of the interpreter."""

import atexit
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from data.images import ArrayImages, FileImages, Images
from data.picture import decode
from data.transforms import resize
from utils.errors import VPNsError

Item, Result = TypeVar("Item"), TypeVar("Result")
BATCH = 64  # images that are decoded ahead when the whole set is
PATIENCE = 30.0  # seconds that an image may take
GOODBYE = 1.0  # seconds that threads get to end

_alive: WeakKeyDictionary[Thread, SimpleQueue] = WeakKeyDictionary()  # with their tasks


def threaded(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[tuple[Item, "Future[Result]"]]:
    """Each item, in order, with the future of `work(item)`; at most `ahead` items are begun early.

    The threads are daemons, unlike those of an executor: one that is stuck does not keep the
    process. If none can be started, the caller's thread works.
    """
    tasks: SimpleQueue = SimpleQueue()
    pending: deque = deque()
    pool: list[Thread] = []
    try:
        with suppress(RuntimeError):  # a limit on processes and threads
            for _ in range(threads):
                thread = Thread(target=_serve, args=(work, tasks), daemon=True)
                thread.start()
                _alive[thread] = tasks
                pool.append(thread)
        for item in items:
            task = item, Future()
            pending.append(task)
            if pool:
                tasks.put(task)
            else:
                _fulfil(work, *task)
            if len(pending) > (ahead if pool else 0):
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for _, future in pending:
            future.cancel()
        _end(pool)


def _serve(work: Callable[[Item], Result], tasks: SimpleQueue) -> None:
    while (task := tasks.get()) is not None:
        _fulfil(work, *task)
        del task  # an idle thread holds no image
    tasks.put(None)  # for the next thread


def _fulfil(work: Callable[[Item], Result], item: Item, future: "Future[Result]") -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work(item))
        except BaseException as error:
            future.set_exception(error)


def _end(pool: list[Thread]) -> None:
    """Let threads end: the images in hand are finished, no other is begun."""
    end = time.monotonic() + GOODBYE
    for thread in pool:
        with suppress(Empty):
            while task := _alive[thread].get_nowait():
                task[1].cancel()
        _alive[thread].put(None)
    with suppress(RuntimeError):  # this is one of them, or the interpreter is going down
        for thread in pool:
            thread.join(max(0.0, end - time.monotonic()))


@atexit.register
def _end_all() -> None:
    """A thread that comes back from torch or PIL while Python goes down would abort the process."""
    _end(list(_alive))


def decoded(
    images: FileImages, work: Callable[[int], Result], rows: Iterable[int], threads: int,
    ahead: int = BATCH,
) -> Iterator[Result]:  # fmt: skip
    """`work` of each row of the images, in order.

    Raises what `work` raises of our errors; VPNsError that names the image when it runs out of
    memory, fails in another way, or has not come after PATIENCE seconds.
    """
    for row, future in threaded(work, rows, threads, ahead):
        if not wait([future], PATIENCE).done:
            raise VPNsError(f"the image {images.shown(row)} was not read within {PATIENCE:g} "
                            "seconds: its disk may hang, or the file is hostile")
        try:
            yield future.result()
        except VPNsError:
            raise
        except MemoryError as error:
            raise VPNsError(f"no memory to decode the image {images.shown(row)}: give a smaller "
                            "--workers, --cache_gb or --batch_size") from error
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise VPNsError(f"cannot decode the image {images.shown(row)} ({reason})") from error


def at_sizes(
    images: Images, sizes: Sequence[int], batches: Sequence[Tensor], threads: int
) -> Iterator[list[Tensor]]:
    """For each batch of rows, its images at each of `sizes`: uint8 (B, C, size, size).

    Of image files, two batches are decoded ahead.
    """
    if isinstance(images, ArrayImages):
        yield from ([resize(images.pixels[rows], size) for size in sizes] for rows in batches)
        return

    def work(row: int) -> list[Tensor]:
        pixels = decode(images.path(row))[None]
        return [resize(pixels, size) for size in sizes]

    rows = (row for batch in batches for row in batch.tolist())
    two_batches = 2 * max(map(len, batches), default=0)
    stream = decoded(images, work, rows, threads, ahead=two_batches)
    for batch in batches:
        columns = zip(*islice(stream, len(batch)), strict=True)
        yield [torch.cat(column) for column in columns]
