"""What can go wrong for a user, as one line, and the exit code that a script sees (DESIGN)."""

import re

MOST = 2000  # characters of a line


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
    """The text of an error as one line; '' when it has none."""
    return printable(" ".join(str(error).split()))


def note(line: str) -> None:
    """Tell the user something that stops nothing."""
    print(f"note: {printable(line)}")


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
