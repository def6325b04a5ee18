"""What a process makes sure of before anything else: streams, folder, packages, one line at an end.

Imports next to nothing, so that whatever is wrong is told before the imports that take seconds.
"""

import os
import sys
from pathlib import Path
from typing import Any

from utils.python_env import unmet


def begin_process() -> None:
    """Ready the streams; end with one line where the program cannot run."""
    ready_streams()
    if "--debug" not in sys.argv:
        sys.excepthook = _one_line
    try:
        os.getcwd()
    except OSError:
        sys.exit("error: the working folder is gone: change to another one")
    if problems := unmet(Path(__file__).parent.parent / "requirements.txt"):
        sys.exit(f"error: {'; '.join(problems)}: pip install -r requirements.txt")


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


def _one_line(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What an import that fails leaves of itself, for lack of memory or files."""
    text = " ".join(str(error).split())[:300]
    print(f"error: it could not begin ({kind.__name__}: {text}): see whether memory or files are "
          "limited (ulimit -a), or --debug", file=sys.stderr)  # fmt: skip
