"""What a file of torch.save holds, as JSON, found out without torch by a process of its own.

Its only input is the open file, its only output one line. Before it looks at anything it gives up
its rights: to open or write a file, to start a process, to more than MEMORY bytes and to more than
a few seconds of computing. Whoever asked (utils/torch_file.py) reads the values of the tensors.
"""

import codecs
import json
import os
import resource
import struct
import sys
import zipfile
from contextlib import suppress
from typing import Any, BinaryIO

from utils.files import leads_outside
from utils.torch_pickle import NAME, Damaged, Reader, Refused, Storage, Tree

MEMORY = 512 * 2**20  # bytes; the pickle of a network is some 100 KB, a loss a step some MB
SECONDS, BYTES_A_SECOND = 5, 50 * 2**20  # of computing, for the look itself and for its sums
ZIP_START = b"PK\x03\x04"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the format before torch 1.6
SHARED = 8  # how often tensors may show the same values, as tied weights do


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
    tree = Tree(size)
    told = tree.of(content)
    needed = sum(view.bytes for view in tree.views)
    if needed > SHARED * size:
        raise Refused(f"its tensors would take {needed:,} bytes, and it has {size:,}")
    lie = {key: (s.kind.name, s.count, places[key]) for key, s in storages.items()}
    return {"content": told, "storages": lie, "sums": zipped}


def _in_zip(file: BinaryIO, size: int, sums: bool) -> tuple[Any, dict, dict]:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        _check_records(archive.namelist(), list(records.values()), size)
        if sums and (broken := archive.testzip()) is not None:
            raise Damaged(f"checksum mismatch in {broken[:NAME]}")
        pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            raise Refused("it is an archive, but not one of torch.save (no data.pkl)")
        if len(pickles) > 1:
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
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise Refused("it is a TorchScript archive, which holds code")
    if packed or sum(record.file_size for record in records) > size:
        raise Refused("its records are packed, and would grow on reading")


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
        storage, (count,) = storages[key], struct.unpack("<q", file.read(8))
        before, places[key] = places.get(key), file.tell()
        _check_count(storage, size - places[key], size)
        if count != storage.count or before:
            raise Damaged("data of two sizes under one name")
        file.seek(storage.kind.size * count, os.SEEK_CUR)
    return content, storages, places


def _check_count(storage: Storage, there: int, size: int) -> None:
    if storage.count > size:
        raise Refused(f"it declares a tensor of {storage.count:,} values in {size:,} bytes")
    if storage.count * storage.kind.size > there:
        raise Damaged("cut off")


def main() -> None:
    """Look at the standard input and print what `look` finds, or the `fault` of the file."""
    try:
        size = os.fstat(sys.stdin.fileno()).st_size
        give_up_rights(size)
        found = look(sys.stdin.buffer, size, "sums" in sys.argv)
    except Refused as error:
        found = {"fault": f"is refused: {error}"}
    except MemoryError:
        found = {"fault": f"is refused: looking at it takes more than {MEMORY >> 20} MiB"}
    except Exception as error:  # a damaged archive or pickle may raise anything
        known = "cut off" if isinstance(error, EOFError) else "no whole file of torch.save"
        what = str(error) if isinstance(error, Damaged) else known
        found = {"fault": f"is damaged ({what}): get it again"}
    print(json.dumps(found))
