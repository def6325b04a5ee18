"""Files that are either whole or absent: write aside, flush to the disk, rename."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import VPNsError, beyond_limit, no_formula
from utils.ranks import first

DEEPEST = 20  # containers within each other, in JSON
SMALL = 2**20  # bytes of a file of settings or results
NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class HashedFile:
    """An open file that hashes what is written and remembers why a write failed.

    torch.save turns an error of the system into one of its own, which does not say that the disk
    is full.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write and hash `data`."""
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Hand everything to the system."""
        self._file.flush()

    def sha256(self) -> str:
        """SHA-256 of all that was written, in hex."""
        return self._digest.hexdigest()


def write_streamed(
    path: Path,
    write: Callable[[HashedFile], object],
    before: Callable[[str], object] = lambda digest: None,
    folder: Path | None = None,
) -> None:
    """Let `write` fill a file so that a reader of `path` sees the old file or all of the new one.

    `before(digest)` is called with the SHA-256 when everything is on the disk, before the file gets
    its name. `folder`, on the same disk, is where a part would stay if the process were killed; by
    default that of `path`. Nobody can foresee its name and put a link there. Raises VPNsError when
    the folder cannot be written or the disk is full; the old file stays. Of several processes the
    first alone writes.
    """
    if not first():
        return
    aside = (folder or path.parent) / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        with open(aside, "xb") as raw:
            file = HashedFile(raw)
            try:
                write(file)
                file.flush()
                os.fsync(raw.fileno())
            except Exception:
                if file.error is not None:
                    raise file.error from None
                raise
        before(file.sha256())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise VPNsError(write_problem(path, error)) from error
    finally:
        with suppress(OSError):
            aside.unlink()


def atomic_write(path: Path, data: bytes | memoryview | str, folder: Path | None = None) -> None:
    """Write `data` to `path` as `write_streamed` does."""
    content = data.encode() if isinstance(data, str) else data
    write_streamed(path, lambda file: file.write(content), folder=folder)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a small JSON file, whole."""
    atomic_write(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows for a spreadsheet: each cell in quotes, none of them a formula."""
    text = io.StringIO()
    table = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    table.writerows([no_formula(str(cell)) for cell in row] for row in rows)
    return text.getvalue()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_problem(path: Path, error: OSError) -> str:
    """One line that says why `path` could not be written, and what to do."""
    if advice := beyond_limit(error):
        return f"cannot write {path} ({error.strerror}): {advice}"
    if error.errno in NO_ROOM:
        way = " or raise the limit (ulimit -f)" if error.errno == errno.EFBIG else ""
        return f"no room to write {path} ({error.strerror}): free some space{way} and run again"
    return f"cannot write {path} ({error.strerror}): choose another folder with --save_dir"


def size_of(path: Path) -> int:
    """Bytes of a regular file, which is not opened. Raises OSError when it is missing or none."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file")
    return status.st_size


def read_small(path: Path, most: int = SMALL) -> bytes:
    """The bytes of a regular file of at most `most`. Raises OSError for any other."""
    size_of(path)  # opening a pipe would wait for somebody who writes into it
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return data


def below(
    folder: Path, refused: Callable[[OSError], object] = lambda error: None
) -> Iterator[Path]:
    """All files and folders below a folder, however deep; no link to a folder is followed.

    `refused` is told of a folder that cannot be listed.
    """
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    yield Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError as error:
            refused(error)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or {} when the file is missing, damaged, too large, or none, as a pipe is."""
    try:
        return parse_object(read_small(path)) or {}
    except OSError:
        return {}


def parse_object(text: str | bytes) -> dict[str, Any] | None:
    """A text as a JSON object, or None when it is none, or deeper than what we write."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not _deep(value) else None


def _deep(value: Any) -> bool:
    """Whether containers lie more than DEEPEST within each other; printing them may never end."""
    inside = [value]
    for _ in range(DEEPEST):
        inside = [i for v in inside for i in (v.values() if isinstance(v, dict) else v)
                  if isinstance(i, dict | list)]  # fmt: skip
    return bool(inside)


def is_amount(value: Any) -> bool:
    """Whether something read from a file is a number that can be counted on: finite, from 0 on."""
    return type(value) in (int, float) and 0 <= value < 2**53


def require_amounts(values: Mapping[str, Any], *names: str, most: float = math.inf) -> None:
    """Raises ValueError when one of these values is no finite number from 0 to `most`."""
    wrong = [name for name in names if not (is_amount(values[name]) and values[name] <= most)]
    if wrong:
        raise ValueError(f"no number under {', '.join(wrong)}")


def leads_outside(name: str) -> bool:
    """Whether a name in an archive, taken for a path, may end outside the folder it is put in.

    No `..` at all is allowed: after a link, where it leads cannot be read from the path.
    """
    path = name.replace("\\", "/")
    return path.startswith("/") or ".." in path.split("/") or path[1:2] == ":"


def side_car(path: Path) -> Path:
    """The file with the SHA-256 of `path`, in the format of sha256sum."""
    return path.with_name(path.name + ".sha256")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
