"""Downloads: made in a folder of their own, and bounded in bytes and in time as a whole."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from utils.errors import VPNsError
from utils.files import below

MOST_BYTES, MOST_SECONDS = 4 * 10**9, 2 * 3600  # of a file of weights
LOOK = 2.0  # seconds between looks at what has come


def cache_place(folder: str, variable: str) -> Path:
    """A folder for what is fetched, `~` expanded.

    Raises VPNsError when there is no home folder, as for a user of a container who has no name.
    """
    path = os.path.expanduser(folder)
    if path.startswith("~"):
        raise VPNsError(f"no home folder to keep what is fetched in: name a folder with {variable}")
    return Path(path)


def own_cache() -> Path:
    """Our own folder for what is fetched: $VPNS_CACHE, or ~/.cache/vpns."""
    return cache_place(os.environ.get("VPNS_CACHE") or "~/.cache/vpns", "VPNS_CACHE")


@contextmanager
def fetched(
    parent: Path, fetch: Callable[[Path], object], most: int = MOST_BYTES,
    seconds: float = MOST_SECONDS,
) -> Iterator[Path]:  # fmt: skip
    """A new folder in `parent` that `fetch(folder)` has filled, and that goes with the block.

    What is moved out of it in the block is whole. Raises what `fetch` raises, and OSError as in
    `bounded`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetch-", dir=parent) as folder:
        with bounded(Path(folder), most, seconds):
            fetch(Path(folder))
        yield Path(folder)


@contextmanager
def bounded(folder: Path, most: int, seconds: float) -> Iterator[None]:
    """Raise OSError within when `folder` holds more than `most` bytes, or `seconds` are over.

    Whoever downloads in the block need not know: a timer interrupts it, for the main thread.
    """
    start = time.monotonic()

    def look(*_: Any) -> None:
        if _bytes_in(folder) > most:
            raise OSError(f"more than {most:,} bytes came")
        if time.monotonic() > start + seconds:
            raise OSError(f"not whole after {seconds / 3600:g} hours")

    answer = signal.signal(signal.SIGALRM, look)
    left, _ = signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)
    try:
        yield
        look()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, answer)
        if left:  # somebody else's
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - start)))


def _bytes_in(folder: Path) -> int:
    """The sizes of all files in a folder, of which some may vanish meanwhile."""
    return sum(os.lstat(path).st_size for path in below(folder) if os.path.lexists(path))
