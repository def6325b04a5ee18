"""Datasets that torchvision's files, idx files or scikit-learn hold as arrays of equal images."""

import gzip
import math
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from data.images import Part, Splits, array_part
from utils.errors import DataError

DIGITS = tuple(map(str, range(10)))
MOST_PIXELS = 2**30  # of an idx file; EMNIST, the largest that people use, has half as many
FREE, GROWTH = 2**26, 100  # pixels, or pixels a byte of the file: MNIST's have five
TEST_DIGITS = 360  # of scikit-learn's 1,797
FIRST_FILE = "train-images-idx3-ubyte"


def check_md5(files: Iterable[tuple[Path, str]]) -> None:
    """Raise DataError that names the first file that is missing or has another MD5 sum."""
    for path, md5 in files:
        if not check_integrity(path, md5):
            what = "is damaged (wrong MD5 sum)" if path.is_file() else "is missing"
            raise DataError(f"{path} {what}: remove its folder or archive and get it again")


def open_cifar(root: Path, kind: type[datasets.CIFAR10]) -> Splits:
    base, meta = root / kind.base_folder, kind.meta
    files = [*kind.train_list, *kind.test_list, (meta["filename"], meta["md5"])]
    check_md5((base / name, md5) for name, md5 in files)
    parts = (kind(root, train) for train in (True, False))
    return Splits(*(array_part(p.data.transpose(0, 3, 1, 2), p.targets, p.classes) for p in parts))


def open_svhn(root: Path) -> Splits:
    files = [datasets.SVHN.split_list[split][1:] for split in ("train", "test")]
    check_md5((root / name, md5) for name, md5 in files)
    parts = (datasets.SVHN(root, split) for split in ("train", "test"))
    return Splits(*(array_part(p.data, p.labels, DIGITS) for p in parts))


def open_digits(_: Path) -> Splits:
    """1,437 training and 360 test images of 8 x 8, stratified, always the same."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn") from error
    raw = load_digits()
    pixels = np.rint(raw.images * 255 / 16).astype(np.uint8)[:, None]
    test, train = array_part(pixels, raw.target, DIGITS).split(TEST_DIGITS, 0, "digits")
    return Splits(train, test)


def open_idx(root: Path, folder: str, classes: tuple[str, ...]) -> Splits:
    """MNIST and the like in `root`/`folder`/raw (torchvision's layout) or in `root` itself."""
    places = [root / folder / "raw", root]
    base = next((p for p in places if _file(p, FIRST_FILE) is not None), places[0])
    return Splits(_idx_part(base, "train", classes), _idx_part(base, "t10k", classes))


def _file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _idx_part(folder: Path, split: str, classes: tuple[str, ...]) -> Part:
    names = [f"{split}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    files = [_file(folder, name) for name in names]
    if None in files:
        raise DataError(f"{folder} has no {names[files.index(None)]}, with or without .gz: "
                        "put all four files there")
    pixels, labels = _read_idx(files[0], 3), _read_idx(files[1], 1)
    if len(pixels) != len(labels):
        raise DataError(f"{files[0]} has {len(pixels)} images but {files[1]} {len(labels)} labels: "
                        "fetch both again")
    return array_part(pixels[:, None], labels, classes)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A uint8 array from an idx file, gzipped or not; no more is read than its header says."""
    opener = gzip.open if path.suffix == ".gz" else open
    head = struct.Struct(f">{1 + dimensions}I")
    try:
        most = min(MOST_PIXELS, max(FREE, GROWTH * path.stat().st_size))
        with opener(path, "rb") as file:
            start, *shape = head.unpack(file.read(head.size).ljust(head.size, b"\0"))
            size = math.prod(shape)
            known = start == 0x0800 + dimensions and 0 < size <= most
            data = bytearray(file.read(size + 1)) if known else b""
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({error}): fetch the file again") from error
    if not known or len(data) != size:
        raise DataError(f"{path} is damaged (no {dimensions}-d idx file): fetch it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
