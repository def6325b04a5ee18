"""Being asked to stop: signals are answered at once, or after the step or write in progress.

Imports next to nothing, so that signals are answered before the imports that take seconds.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from utils.errors import Interrupted, VPNsError

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")


def end_at_once() -> None:
    """Until `Stop.install`: a signal ends the process, which has begun nothing, with one line.

    An exception could get lost in an import that tries others when it fails.
    """
    _handle(_end)


def _end(number: int, frame: Any) -> None:
    name = signal.Signals(number).name
    os.write(2, f"error: stopped by {name} before it began; run the command again\n".encode())
    os._exit(Interrupted.exit_code)


def _handle(answer: Callable[[int, Any], None] | signal.Handlers) -> None:
    for number in _answered():
        signal.signal(number, answer)


def _answered() -> list[int]:
    """The numbers of SIGNALS; of a closed terminal only unless it is ignored, as under nohup."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    return [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def signals_later() -> Iterator[None]:
    """Answer signals after the block, whoever answers them; for the main thread.

    For calls into a library that would lose or replace what an answer raises: readers of files,
    to which any exception is damage.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # no other runs handlers
        before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in _answered()}
    try:
        yield
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)
        for number in came:
            signal.raise_signal(number)


class Stop:
    """Whether the process was asked to stop, and when it may."""

    def __init__(self) -> None:
        self.requested = ""
        self.then = "run the command again"  # what the user may do after a stop
        self._holds = 0

    def install(self) -> None:
        """Answer SIGNALS from now on (main thread only)."""
        _handle(self._answer)

    def ignore(self) -> None:
        """Answer no more: what had to be saved is saved, and the process is about to end."""
        _handle(signal.SIG_IGN)

    def _answer(self, number: int, frame: Any) -> None:
        self.requested = signal.Signals(number).name
        if not self._holds:
            self.now()

    def now(self) -> None:
        """Raises Interrupted."""
        raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped by {self.requested}; {self.then}")

    def meant(self, error: BaseException) -> BaseException:
        """`error`, or the stop if that is what it must have been before a library replaced it.

        Errors that we raise, and those of the system, mean what they say.
        """
        own = isinstance(error, VPNsError | Interrupted | OSError | MemoryError)
        return error if own or not self.requested else self._interrupted()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Put an answer off to the end of the block."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self.requested and not self._holds:
            self.now()
