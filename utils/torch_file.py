"""Files of torch.save, looked at before torch reads them: sums, names, sizes and calls."""

import io
import mmap
import pickletools
import zipfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from utils.errors import VPNsError
from utils.files import leads_outside

ZIP_START = b"PK\x03\x04"
LEGACY_PICKLES = 5  # before torch 1.6: magic number, protocol, system, content, keys of the data
# What plain values need beside torch's own names, of which torch keeps a list.
PLAIN = frozenset(
    ("collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.set")
)
INTEGERS = frozenset(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"))


@dataclass
class Content:
    """What pickles would do: the functions and classes they name, the largest data they declare."""

    calls: list[str] = field(default_factory=list)
    largest: int = 0

    @property
    def refused(self) -> str | None:
        """The first call that is never needed; torch refuses those of its own names."""
        foreign = (c for c in self.calls if not c.startswith("torch.") and c not in PLAIN)
        return next(foreign, None)


def inspect(path: Path) -> bool:
    """Refuse a torch file that is damaged, or asks for code or for more data than it has.

    Nothing is run, and no more memory is taken than the file is long. Returns whether the file
    has checksums of its own: the CRC-32 of a zip's records, which torch does not compare. Raises
    VPNsError with the path and the reason.
    """
    with open(path, "rb") as file:
        zipped = file.read(len(ZIP_START)) == ZIP_START
    try:
        content = _in_zip(path) if zipped else _in_legacy(path)
    except (VPNsError, OSError):
        raise
    except Exception as error:  # a damaged archive or pickle may raise anything
        raise VPNsError(f"{path} is damaged, no whole file of torch.save: get it again") from error
    size = path.stat().st_size
    if content.refused:
        raise refusal(path, content.refused)
    if content.largest > size:
        problem = f"it declares a tensor of {content.largest:,} values in {size:,} bytes"
        raise VPNsError(f"{path} is refused: {problem}")
    return zipped


def refusal(path: Path, call: str) -> VPNsError:
    """The error for a file that would call a function or build an object of a class."""
    reason = "and only tensors and plain values load"
    return VPNsError(f"{path} is refused: reading it would call {call}, {reason}")


def _in_zip(path: Path) -> Content:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        _check_records(path, records)
        broken = archive.testzip()
        if broken is not None:
            raise VPNsError(f"{path} is damaged: checksum mismatch in {broken}: get it again")
        content = Content()
        for record in records:
            if PurePosixPath(record.filename).name == "data.pkl":
                _look(io.BytesIO(archive.read(record)), content)
    return content


def _check_records(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Refuse records that torch.save does not write."""
    names = [record.filename for record in records]
    outside = [name for name in names if leads_outside(name)]
    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    problem = None
    if outside:
        problem = f"it holds {outside[0]!r}, a name outside its own folder"
    elif len(set(names)) < len(names):
        problem = "it holds two records of the same name"
    elif packed or sum(record.file_size for record in records) > path.stat().st_size:
        problem = "its records are packed, and would grow on reading"
    elif any(PurePosixPath(name).name == "constants.pkl" for name in names):
        problem = "it is a TorchScript archive, which holds code"
    if problem:
        raise VPNsError(f"{path} is refused: {problem}")


def _in_legacy(path: Path) -> Content:
    content = Content()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(LEGACY_PICKLES):
            _look(data, content)
            if content.refused:
                break  # what follows need not be whole
    return content


def _look(stream: Any, content: Content) -> None:
    """Go through one pickle's instructions without following them; adds to `content`."""
    words: deque[str] = deque(maxlen=2)
    numbers: list[int] = []
    for operation, argument, _ in pickletools.genops(stream):
        name = operation.name
        if name in ("GLOBAL", "INST"):
            content.calls.append(_called(argument))
        elif name == "STACK_GLOBAL":
            content.calls.append(_called(" ".join(words)))
        elif name == "MARK":
            numbers = []
        elif name == "BINPERSID":  # the data of a tensor: type, key, place, number of values
            content.largest = max(content.largest, *numbers, 0)
        elif name in INTEGERS:
            numbers.append(int(argument))
        elif isinstance(argument, str):
            words.append(argument)


def _called(words: str) -> str:
    """`module name` as module.name, with Python 2's `__builtin__` as builtins."""
    return words.replace(" ", ".").replace("__builtin__.", "builtins.")
