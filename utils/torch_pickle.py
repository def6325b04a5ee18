"""What a file of torch.save holds, as JSON, found out without torch by a process of its own.

Its only input is the open file, its only output one line. Before it looks at anything it gives up
its rights: to open or write a file, to start a process, to more than MEMORY bytes and to more than
a few seconds of computing. Of the names in a pickle those of `NAMES` alone mean something, and
what they mean is inert: a tensor is a description of where its values lie in the file, and whoever
asked (utils/torch_file.py) reads them from there.
"""

import codecs
import json
import os
import resource
import struct
import sys
import zipfile
from contextlib import suppress
from pickle import Unpickler
from typing import Any, BinaryIO, NamedTuple

from utils.files import leads_outside

MEMORY = 512 * 2**20  # bytes; the pickle of a network is some 100 KB, a loss a step some MB
SECONDS, BYTES_A_SECOND = 5, 50 * 2**20  # of computing, for the look itself and for its sums
ITEMS, TEXT, DEPTH = 300_000, 2**24, 100  # values, characters, and containers within each other
NAME = 100  # characters of a name that a message shows
ZIP_START = b"PK\x03\x04"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the format before torch 1.6
LARGEST = 2**63
SHARED = 8  # how often tensors may show the same values, as tied weights do
KINDS = {
    "Double": ("float64", 8), "Float": ("float32", 4), "Half": ("float16", 2),
    "BFloat16": ("bfloat16", 2), "Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2),
    "Char": ("int8", 1), "Byte": ("uint8", 1), "Bool": ("bool", 1),
    "ComplexFloat": ("complex64", 8), "ComplexDouble": ("complex128", 16),
}  # fmt: skip


class Refused(Exception):
    """Why a file is refused, though it may be whole."""


class Damaged(Exception):
    """What is wrong with a file that is not whole."""


class Kind(NamedTuple):
    """The type of the values of a storage, and their size in bytes."""

    name: str
    size: int


class Storage(NamedTuple):
    """The values of one or several tensors: `count` of a kind, in the record `key`."""

    kind: Kind
    key: str
    count: int


class View(NamedTuple):
    """A tensor: what it shows of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Plain(dict):
    """A dict of the file; attributes, as state dicts carry their versions, are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    """A tensor, as torch._utils._rebuild_tensor_v2 is asked for it."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > 64:
        raise Damaged("a tensor without data")
    if not all(type(n) is int and 0 <= n < LARGEST for n in numbers):
        raise Damaged("a tensor of impossible sizes")
    return View(storage, offset, tuple(shape), tuple(strides))


def _no_values(*_: Any) -> None:
    raise Refused("it declares a tensor without its values")


NAMES = {
    "collections.OrderedDict": Plain,
    "collections.Counter": Plain,
    "builtins.set": set,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": lambda view, *_: view,
    **{f"torch.{name}Storage": Kind(*kind) for name, kind in KINDS.items()},
    **{f"torch.{name}Tensor": _no_values for name in KINDS},
}


class Reader(Unpickler):
    """Reads a pickle in which names mean what NAMES says."""

    def __init__(self, file: BinaryIO, storages: dict[str, Storage]) -> None:
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """Raises Refused for a name that tensors and plain values do not need."""
        called = f"{module.replace('__builtin__', 'builtins')}.{name}"  # Python 2's
        if called not in NAMES:
            raise Refused(f"reading it would call {called[:NAME]}, "
                          "and only tensors and plain values load")
        return NAMES[called]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage: its kind, key, place and number of values."""
        word, kind, key, _, count, *rest = pid
        if word != "storage" or not isinstance(kind, Kind) or not isinstance(key, str) or any(rest):
            raise Damaged("data of an unknown kind")
        if type(count) is not int or count < 0:
            raise Damaged("data of an impossible size")
        storage = Storage(kind, key, count)
        if self._storages.setdefault(key, storage) != storage:
            raise Damaged("data of two kinds under one name")
        return storage


def give_up_rights(size: int) -> None:
    """No file, no process, little memory and time for a file of `size` bytes from now on."""
    codecs.lookup("cp437")  # zipfile's, a module that could not be opened later
    seconds = SECONDS + size // BYTES_A_SECOND
    limits = {"AS": MEMORY, "CPU": seconds, "FSIZE": 0, "CORE": 0, "NPROC": 0, "NOFILE": 0}
    for name, limit in limits.items():
        with suppress(AttributeError, OSError, ValueError):  # some systems lack some of them
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def look(file: BinaryIO, size: int, sums: bool) -> dict[str, Any]:
    """The content of the file, where its storages lie, and whether it has sums of its own."""
    zipped = file.read(len(ZIP_START)) == ZIP_START
    file.seek(0)
    content, storages, places = _in_zip(file, size, sums) if zipped else _in_legacy(file, size)
    views: dict[View, int] = {}
    tree = Tree(views, size).of(content)
    needed = sum(_bytes(view) for view in views)
    if needed > SHARED * size:
        raise Refused(f"its tensors would take {needed:,} bytes, and it has {size:,}")
    rows = {key: row for row, key in enumerate(storages)}
    return {
        "content": tree,
        "storages": [(s.kind.name, s.count, places[key]) for key, s in storages.items()],
        "views": [(rows[v.storage.key], v.offset, v.shape, v.strides) for v in views],
        "sums": zipped,
    }  # fmt: skip


def _in_zip(file: BinaryIO, size: int, sums: bool) -> tuple[Any, dict, dict]:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        _check_records(archive.namelist(), list(records.values()), size)
        if sums and (broken := archive.testzip()) is not None:
            raise Damaged(f"checksum mismatch in {broken[:NAME]}")
        pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Damaged(f"{len(pickles)} records named data.pkl instead of one")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"  # which torch 2.0 was the first to note
        if order in records and archive.read(order) != b"little":
            raise Refused("it was written on a machine of another byte order")
        storages: dict[str, Storage] = {}
        with archive.open(pickles[0]) as stream:
            content = Reader(stream, storages).load()
    places = {}
    for key, storage in storages.items():
        record = records[f"{folder}data/{key}"]
        _check_count(storage, record.file_size, size)
        file.seek(record.header_offset)
        name, extra = struct.unpack("<26x2H", file.read(30))
        places[key] = record.header_offset + 30 + name + extra
    return content, storages, places


def _check_records(names: list[str], records: list[zipfile.ZipInfo], size: int) -> None:
    """Raises Refused for records that torch.save does not write."""
    outside = [name for name in names if leads_outside(name)]
    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if outside:
        raise Refused(f"it holds {outside[0][:NAME]!r}, a name outside its own folder")
    if len(records) < len(names):
        raise Refused("it holds two records of the same name")
    if packed or sum(record.file_size for record in records) > size:
        raise Refused("its records are packed, and would grow on reading")
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise Refused("it is a TorchScript archive, which holds code")


def _in_legacy(file: BinaryIO, size: int) -> tuple[Any, dict, dict]:
    """Before torch 1.6: five pickles, then for each key its count and its values."""
    storages: dict[str, Storage] = {}
    magic, version, system, content, keys = (Reader(file, storages).load() for _ in range(5))
    if (magic, version) != (MAGIC, VERSION) or not isinstance(keys, list):
        raise Damaged("no file of torch.save")
    if not system["little_endian"]:
        raise Refused("it was written on a machine of another byte order")
    places = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = file.tell()
        _check_count(storages[key], size - places[key], size)
        file.seek(storages[key].kind.size * count, os.SEEK_CUR)
    return content, storages, places


def _check_count(storage: Storage, there: int, size: int) -> None:
    if storage.count > size:
        raise Refused(f"it declares a tensor of {storage.count:,} values in {size:,} bytes")
    if storage.count * storage.kind.size > there:
        raise Damaged("cut off")


def _bytes(view: View) -> int:
    count = view.storage.kind.size
    for length in view.shape:
        count *= length
    return count


class Tree:
    """Content as JSON: containers and tensors are objects of one key, which names their kind."""

    def __init__(self, views: dict[View, int], size: int) -> None:
        self._views, self._size = views, size
        self._items, self._text = ITEMS, TEXT

    def of(self, value: Any, depth: int = 0) -> Any:
        """The JSON of a value. Raises Refused for one that is not plain, or never ends."""
        self._items -= 1
        self._text -= len(value) if isinstance(value, str) else 0
        if self._items < 0 or self._text < 0 or depth > DEPTH:
            raise Refused("its values are too many, or hold one another without end")
        if isinstance(value, View):
            return {"view": self._number(value)}
        if isinstance(value, dict):
            pairs = [(self._key(k), self.of(v, depth + 1)) for k, v in value.items()]
            return {"dict": pairs}
        for kind in (list, tuple, set):
            if type(value) is kind:
                return {kind.__name__: [self.of(item, depth + 1) for item in value]}
        return self._key(value)

    def _key(self, value: Any) -> Any:
        plain = value is None or type(value) in (bool, int, float, str)
        if not plain or type(value) is int and not -LARGEST <= value < LARGEST:
            kind = type(value).__name__
            raise Refused(f"it holds a {kind}, and only tensors and plain values load")
        return value

    def _number(self, view: View) -> int:
        if _bytes(view) > self._size:
            raise Refused(f"it declares a tensor of shape {view.shape} in {self._size:,} bytes")
        pairs = zip(view.shape, view.strides, strict=True)
        last = view.offset + sum((length - 1) * stride for length, stride in pairs)
        if 0 not in view.shape and last >= view.storage.count:
            raise Damaged("a tensor reaches beyond its data")
        return self._views.setdefault(view, len(self._views))


def main() -> None:
    """Look at the standard input and print what `look` finds, or why it finds nothing, as JSON."""
    print(json.dumps(answer(sys.stdin.buffer, "sums" in sys.argv)))


def answer(file: BinaryIO, sums: bool) -> dict[str, Any]:
    """What `look` finds, or under `refused` or `damaged` why it finds nothing."""
    try:
        size = os.fstat(file.fileno()).st_size
        give_up_rights(size)
        return look(file, size, sums)
    except Refused as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"looking at it takes more than {MEMORY >> 20} MiB"}
    except Damaged as error:
        return {"damaged": str(error)}
    except EOFError:
        return {"damaged": "cut off"}
    except Exception:  # a damaged archive or pickle may raise anything
        return {"damaged": "no whole file of torch.save"}

