"""Being asked to stop: signals are answered at once, or after the step or write in progress."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from utils.errors import Interrupted

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")


class Stop:
    """Whether the process was asked to stop, and when it may."""

    def __init__(self) -> None:
        self.requested = ""
        self._holds = 0
        self._owner = os.getpid()

    def install(self) -> None:
        """Answer SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 from now on (main thread only)."""
        for name in SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._answer)

    def ignore(self) -> None:
        """Answer no more: what had to be saved is saved, and the process is about to end."""
        for name in SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)

    def _answer(self, number: int, frame: Any) -> None:
        if os.getpid() != self._owner:
            # A forked data worker: it must die as if we had never been asked, and save nothing.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.requested = signal.Signals(number).name
        if not self._holds:
            self.now()

    def now(self) -> None:
        """Raises Interrupted."""
        raise Interrupted(f"stopped by {self.requested}; the same command continues from here")

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
