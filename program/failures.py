"""An exception as the one line that a user reads."""

import errno
import os
from pathlib import Path

from utils.errors import Interrupted, VPNsError, message_of
from utils.files import NO_ROOM, write_problem


def one_line(error: BaseException) -> str:
    """The message of an error as one line."""
    text = message_of(error)
    if isinstance(error, VPNsError | Interrupted):
        return text
    if isinstance(error, OSError):
        if error.filename is None and error.errno in (errno.EPIPE, *NO_ROOM):
            return f"the standard output takes no more ({error.strerror}): run the command again"
        path = Path(error.filename or os.getcwd())
        full = error.errno in NO_ROOM
        return write_problem(path, error) if full else f"{path}: {error.strerror or text}"
    no_room = "allocate memory" in text or "Storage size calculation overflowed" in text
    no_room |= type(error).__name__ == "OutOfMemoryError"
    if no_room or isinstance(error, MemoryError):
        return f"out of memory, lower --batch_size or --cache_gb: {text}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile fails here; it needs a C++ compiler: get g++ or drop it: {text[:180]}"
    return f"{type(error).__name__}: {text[:300]} (this is a bug: run with --debug and report it)"
