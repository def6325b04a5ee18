"""Standard streams that a program can rely on: open, in order, and able to write every letter."""

import os
import sys


def ready_streams() -> None:
    """Open what was closed (daemons, cron, `>&-`), so that no file of ours takes its number.

    A letter that the encoding lacks is escaped. Lines are written when they end, so that notes
    and errors come in order in a log file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
