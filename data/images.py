"""Where pixels come from: one uint8 tensor of equal-sized images, or image files."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.picture import refusal
from utils.errors import printable
from utils.files import size_of
from utils.seed import generator

SIZED, READ = 20_000, 256  # files of a set of which the size, and the content, is looked at
READ_BYTES = 1 << 20  # of the content of each
NAMED = 3  # images or classes that a message names; the rest it counts


@dataclass(frozen=True)
class ArrayImages:
    """Images of one size in memory: `pixels` is uint8 (N, C, H, W), C = 1 (grey) or 3."""

    pixels: Tensor
    notes = ()  # see FileImages

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

    The names are a bytes array, which is far smaller than a list of a million strings.
    """

    root: Path
    names: np.ndarray
    channels: int = 3
    notes: tuple[str, ...] = ()  # for the user: what lies among them and is not taken

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        return self.root / os.fsdecode(bytes(self.names[row]))

    def shown(self, row: int) -> str:
        """The absolute path for a message, also when the name of the file is no UTF-8."""
        return printable(str(self.path(row).absolute()))

    def select(self, rows: Tensor) -> "FileImages":
        return replace(self, names=self.names[rows.numpy()])

    def identity(self) -> Iterable[bytes]:
        """Bytes that change with the images, as far as a look that takes seconds can tell.

        Every name; the size of every file, of 20,000 spread evenly where there are more; of every
        file, of 256 spread evenly over those where there are more, the first MiB, which is all of
        most images. Not noticed is an image that was replaced by another of the same size, when it
        is none of the 256 or differs only after its first MiB, and one of another size that is
        none of the 20,000. Raises DataError that names a file that cannot be read.
        """
        yield b"\n".join(self.names.tolist())
        sized = spread(range(len(self)), SIZED)
        for look, rows in (_size, sized), (_start, spread(sized, READ)):
            for path in map(self.path, rows):
                try:
                    yield look(path)
                except OSError as error:
                    raise refusal(path, error) from error


def spread(rows: Sequence[int], most: int) -> Sequence[int]:
    """The rows, or where there are more than `most`, that many spread evenly over them."""
    return rows if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def _size(path: Path) -> bytes:
    return b"\n%d" % size_of(path)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(READ_BYTES)


Images = ArrayImages | FileImages


class Part(NamedTuple):
    """Images, their labels (int64, index into `classes`) and the names of the classes."""

    images: Images
    labels: Tensor
    classes: tuple[str, ...]

    def select(self, rows: Tensor) -> "Part":
        return Part(self.images.select(rows), self.labels[rows], self.classes)

    def split(self, count: int, *key: object) -> tuple["Part", "Part"]:
        """A stratified choice of `count` images, the same for every seed, and the others."""
        chosen, others = stratified(self.labels, count, *key)
        return self.select(chosen), self.select(others)


def stratified(labels: Tensor, count: int, *key: object) -> tuple[Tensor, Tensor]:
    """Choose `count` of the images with these labels (int64, N): (chosen rows, other rows), sorted.

    Every class gives its share, rounded down; the images still missing come from the classes
    with the largest remainders (ties: the lowest class first).
    """
    totals = torch.bincount(labels)
    shares = totals * count // len(labels)
    remainders = totals * count % len(labels)
    extra = remainders.argsort(descending=True, stable=True)[: count - int(shares.sum())]
    shares[extra] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        rows = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=generator(*key, label))
        chosen[rows[order[:share]]] = True
    return chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]


class Splits(NamedTuple):
    """The training and the test part of a dataset."""

    train: Part
    test: Part

    @property
    def notes(self) -> tuple[str, ...]:
        """What is told of the images of both parts, each line once."""
        return tuple(dict.fromkeys(line for part in self for line in part.images.notes))


def array_part(pixels: np.ndarray, labels: Sequence[int], classes: Iterable[str]) -> Part:
    """A Part from uint8 pixels (N, C, H, W)."""
    images = ArrayImages(torch.from_numpy(np.ascontiguousarray(pixels)))
    return Part(images, torch.as_tensor(labels, dtype=torch.int64).reshape(-1), tuple(classes))


def file_part(
    root: Path, samples: Iterable[tuple[str | Path, int]], classes: Iterable[str], *notes: str
) -> Part:
    """A Part from image files below `root` with their labels."""
    pairs = [(os.fsencode(os.path.relpath(path, root)), label) for path, label in samples]
    names, labels = zip(*pairs, strict=True) if pairs else ((), ())
    images = FileImages(root, np.array(names, dtype=np.bytes_), notes=notes)
    return Part(images, torch.tensor(labels, dtype=torch.int64), tuple(classes))


def shortened(names: Sequence[str], of: str = "") -> str:
    """The number of images or classes and the first few of their names."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{len(names):,}{of} ({', '.join(names[:NAMED])}{more})"
