"""What a run folder holds is its own: no link is followed out of it, no pipe waited for."""

import errno
import fcntl
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from utils.errors import VPNsError, note, printable
from utils.files import below, write_problem
from utils.ranks import first

HOLDER = 200  # bytes of a lock that are read: `process 7 on host`
_ADD = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


class InUse(VPNsError):
    """Another process holds a lock."""


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Raises VPNsError when the disk refuses a write in the block: of its file, else of `path`."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else path
        raise VPNsError(write_problem(Path(named), error)) from error


def refuse_links(folder: Path, base: Path) -> None:
    """Raises VPNsError for a link in `folder`, at its place, or between it and `base`.

    Files would be written, replaced or removed where it leads. `base`, which the user has named,
    may be a link itself.
    """
    places = [place for place in (folder, *folder.parents) if base in place.parents]
    inside = below(folder, _unlisted) if folder.exists() else ()
    for place in (*places, *inside):
        _refuse_link(place)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise VPNsError(f"{path} is a link, which no result is written through: put what it "
                        "leads to in its place, or remove it")


def _unlisted(error: OSError) -> None:
    """A folder that cannot be listed may hold links all the same."""
    raise VPNsError(f"{error.filename} cannot be listed ({error.strerror}): make it readable")


def open_to_all(folder: Path, base: Path) -> Path | None:
    """The first of `base` and what lies between it and `folder` that everybody may write to."""
    places = [place for place in (*reversed(folder.parents), folder) if place.is_dir()]
    places = [place for place in places if place == base or base in place.parents]
    return next((place for place in places if place.stat().st_mode & stat.S_IWOTH), None)


def open_own(path: Path) -> IO[str]:
    """A text file to append to, which is made if it is missing.

    Raises VPNsError for a link, a file with a second name elsewhere, and a pipe, which would wait
    for a reader; OSError when it cannot be written. Of several processes the first alone writes.
    """
    if not first():
        return open(os.devnull, "a+", encoding="utf-8")
    _refuse_link(path)
    handle = os.open(path, _ADD, 0o666)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        kind = "pipe" if stat.S_ISFIFO(status.st_mode) else "hard link or no file"
        raise VPNsError(f"{path} is a {kind}: remove it")
    return os.fdopen(handle, "a+", encoding="utf-8", errors="replace")


def lock(path: Path) -> IO[str]:
    """Hold `path` for this process; the lock goes with the process, however it ends.

    Raises InUse that names the holder. Where the file system has no locks, a note says so.
    """
    file = open_own(path)
    if not first():  # which holds it for all
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            note(f"{path.parent} is on a file system without locks ({error.strerror}): two runs in "
                 "one folder are not prevented there")
            return file
        file.seek(0)
        holder = printable(file.read(HOLDER).strip()) or "another process"
        file.close()
        raise InUse(f"{path.parent} is in use by {holder}: wait for it or stop it") from error
    file.truncate(0)
    print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
    return file
