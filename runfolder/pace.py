"""When a training state is due: so many epochs, or so many minutes, after the last one."""

import time
from collections.abc import Callable


class Pace:
    """`minutes` after the last state, every `epochs` epochs (0: not), and at the end of a stage."""

    def __init__(
        self, epochs: int = 0, minutes: float = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives seconds."""
        self._epochs, self._minutes, self._clock = epochs, minutes, clock
        self.restart()

    def restart(self) -> None:
        """Count the minutes from now: a state was written, or a stage begins."""
        self._last = self._clock()

    def late(self) -> bool:
        """Whether the minutes have passed."""
        return self._minutes > 0 and self._clock() - self._last >= 60 * self._minutes

    def due(self, done: int, epochs: int) -> bool:
        """Whether to write a state after `done` epochs of a stage of `epochs`.

        What follows a stage starts from its end, which therefore always has one.
        """
        every = self._epochs > 0 and done % self._epochs == 0
        return done == epochs or every or self.late()
