"""What can go wrong for a user, as one line, and the exit code that a script sees (DESIGN)."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 2000  # characters of a line
LIMITS = {
    errno.EMFILE: "raise the limit (ulimit -n), or give a smaller --workers",
    errno.ENFILE: "all programs together have too many files open: end some, and run again",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u, or the container's), or "
                  "give --workers 0 and OMP_NUM_THREADS=1",
}  # fmt: skip


def printable(text: object, most: int = MOST) -> str:
    """A text as one line for a terminal: what moves a cursor or breaks the line is escaped.

    It may come from a file or a folder of a stranger; what is longer than `most` is cut.
    """
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: most + 1])
    return line if len(line) <= most else f"{line[: most - 3]}..."


def no_formula(text: str) -> str:
    """A text that a spreadsheet shows and never runs, by whatever mark it divides cells."""
    return re.sub(r"""((?:^|[;,\t|])[\s"]*)(?=[=+\-@＝＋－＠])""", r"\1'", text)


def message_of(error: BaseException) -> str:
    """The text of an error as one line, or its kind when it has none."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def beyond_limit(error: BaseException) -> str:
    """What to do about a limit of the system on files, processes or threads; '' for other errors.

    No file is the cause then, whichever was to be opened.
    """
    text = str(error).replace("can't start new thread", os.strerror(errno.EAGAIN))
    named = [number for number in LIMITS if os.strerror(number) in text]  # libraries lose numbers
    return LIMITS.get(getattr(error, "errno", None) or next(iter(named), None), "")


def note(line: str) -> None:
    """Tell the user something that stops nothing."""
    print(f"note: {printable(line)}")


@contextmanager
def optional(what: str) -> Iterator[None]:
    """What only decorates: an error in the block is a note."""
    try:
        yield
    except Exception as error:
        note(f"no {what} ({message_of(error)[:200]})")


class VPNsError(Exception):
    """An error that one line explains: what is wrong and what to do. Shown without a traceback."""

    exit_code = 1


class UsageError(VPNsError):
    """A flag, a value or a combination of flags that cannot work."""

    exit_code = 2


class NumericError(VPNsError):
    """A loss, gradient, score or prompt that is not finite."""

    exit_code = 3


class DataError(VPNsError):
    """A dataset that is missing or damaged."""

    exit_code = 4


class Interrupted(BaseException):
    """The run was asked to stop; the same command continues it (75 is EX_TEMPFAIL).

    Like KeyboardInterrupt it is no Exception: a signal may come while a file is read, and must
    not pass for damage to that file.
    """

    exit_code = 75
