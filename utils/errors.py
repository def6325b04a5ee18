"""What can go wrong for a user, and the exit code that a script sees (DESIGN: exit codes)."""


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
