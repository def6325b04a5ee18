"""Where pixels come from: one uint8 tensor of equal-sized images, or image files."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import DataError


@dataclass(frozen=True)
class ArrayImages:
    """Images of one size in memory: `pixels` is uint8 (N, C, H, W), C = 1 (grey) or 3."""

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    def select(self, rows: Tensor) -> "ArrayImages":
        return ArrayImages(self.pixels[rows])

    def identity(self) -> Iterable[bytes]:
        """Bytes that change when the images do."""
        yield str(tuple(self.pixels.shape)).encode()
        yield self.pixels.contiguous().numpy().data


@dataclass(frozen=True)
class FileImages:
    """Image files under `root`; `names` are their paths relative to it.

    The names are a bytes array: a list of a million strings would be copied page by page into
    every worker as reference counts touch it.
    """

    root: Path
    names: np.ndarray
    channels: int = 3

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        return self.root / os.fsdecode(bytes(self.names[row]))

    def shown(self, row: int) -> str:
        """The absolute path for a message, also when the name of the file is no UTF-8."""
        return str(self.path(row).absolute()).encode(errors="backslashreplace").decode()

    def select(self, rows: Tensor) -> "FileImages":
        return FileImages(self.root, self.names[rows.numpy()])

    def identity(self, sizes: int = 512) -> Iterable[bytes]:
        """Every file name, and the sizes of some 512 files spread evenly over them."""
        yield b"\n".join(self.names.tolist())
        for row in range(0, len(self), max(1, len(self) // sizes)):
            path = self.path(row)
            try:
                yield str(path.stat().st_size).encode()
            except OSError as error:
                raise DataError(f"cannot read {path} ({error.strerror}): get it again") from error


Images = ArrayImages | FileImages


class Part(NamedTuple):
    """Images, their labels (int64, index into `classes`) and the names of the classes."""

    images: Images
    labels: Tensor
    classes: tuple[str, ...]

    def select(self, rows: Tensor) -> "Part":
        return Part(self.images.select(rows), self.labels[rows], self.classes)


class Splits(NamedTuple):
    """The training and the test part of a dataset."""

    train: Part
    test: Part


def array_part(pixels: np.ndarray, labels: Sequence[int], classes: Iterable[str]) -> Part:
    """A Part from uint8 pixels (N, C, H, W)."""
    images = ArrayImages(torch.from_numpy(np.ascontiguousarray(pixels)))
    return Part(images, _int64(labels), tuple(classes))


def file_part(
    root: Path, paths: Sequence[str | Path], labels: Sequence[int], classes: Iterable[str]
) -> Part:
    """A Part from image files below `root`."""
    names = np.array([os.fsencode(os.path.relpath(path, root)) for path in paths], dtype=np.bytes_)
    return Part(FileImages(root, names), _int64(labels), tuple(classes))


def _int64(labels: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.array(labels, dtype=np.int64).reshape(-1))
