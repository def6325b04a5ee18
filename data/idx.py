"""The idx files of MNIST and Fashion-MNIST: gzipped or not, in any of the usual folders."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from data.images import Part, Splits, array_part
from utils.errors import DataError

FIRST_FILE = "train-images-idx3-ubyte"


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A uint8 array from an idx file of so many dimensions. Raises DataError naming the file."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({error}): fetch the file again") from error
    start = 4 + 4 * dimensions
    shape = np.frombuffer(data[4:start], dtype=">i4") if len(data) >= start else ()
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != start + np.prod(shape, dtype=int):
        raise DataError(f"{path} is damaged (no {dimensions}-d idx file): fetch it again")
    return np.frombuffer(bytearray(data), dtype=np.uint8, offset=start).reshape(shape)


def open_idx(root: Path, folder: str, classes: tuple[str, ...]) -> Splits:
    """The splits in `root`/`folder`/raw (torchvision's layout) or in `root` itself."""
    places = [root / folder / "raw", root]
    base = next((p for p in places if _find(p, FIRST_FILE) is not None), places[0])
    return Splits(_part(base, "train", classes), _part(base, "t10k", classes))


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _part(folder: Path, split: str, classes: tuple[str, ...]) -> Part:
    names = [f"{split}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    files = [_find(folder, name) for name in names]
    if None in files:
        raise DataError(f"{folder} has no {names[files.index(None)]}, with or without .gz: "
                        "put all four files there")
    pixels, labels = read_idx(files[0], 3), read_idx(files[1], 1)
    if len(pixels) != len(labels):
        raise DataError(f"{files[0]} has {len(pixels)} images but {files[1]} {len(labels)} labels: "
                        "fetch both again")
    return array_part(pixels[:, None], labels, classes)
