"""An exception as the one line that a user reads."""

import errno
import os
from pathlib import Path

from utils.errors import Interrupted, VPNsError, beyond_limit, message_of
from utils.files import NO_ROOM, write_problem


def one_line(error: BaseException) -> str:
    """The message of an error as one line."""
    text = message_of(error)
    if isinstance(error, VPNsError | Interrupted):
        return text
    if advice := beyond_limit(error):
        return f"{getattr(error, 'strerror', None) or text}: {advice}"
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        return _of_system(error, text)
    no_room = "allocate memory" in text or "Storage size calculation overflowed" in text
    no_room |= type(error).__name__ == "OutOfMemoryError"
    if no_room or isinstance(error, MemoryError):
        return f"out of memory, lower --batch_size or --cache_gb: {text}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile fails here; it needs a C++ compiler: get g++ or drop it: {text[:180]}"
    return f"{type(error).__name__}: {text[:300]} (this is a bug: run with --debug and report it)"


def _of_system(error: OSError, text: str) -> str:
    """An error of the system; a file is named as its cause only if it was one."""
    if isinstance(error.filename, str | bytes):
        path, full = Path(os.fsdecode(error.filename)), error.errno in NO_ROOM
        return write_problem(path, error) if full else f"{path}: {error.strerror or text}"
    if error.errno in (errno.EPIPE, errno.EBADF, *NO_ROOM):
        return f"the standard output takes no more ({error.strerror}): run the command again"
    return f"{error.strerror or text}: the system refused, run with --debug to see what"
