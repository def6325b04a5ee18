"""Which files of a dataset cannot be read, and which are converted on the way to RGB."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tqdm import tqdm

from data.decoding import decoded
from data.images import FileImages, Images, Part, Splits
from data.picture import examine

DELAY = 2.0  # seconds before a progress bar appears


class Faults(NamedTuple):
    """Rows of images: why each unreadable one is, and the odd ones by what is converted."""

    unreadable: dict[int, str]
    odd: dict[str, list[int]]


def find_faults(images: Images, workers: int, title: str) -> Faults:
    """Examine every image file, with a progress bar on a terminal; arrays have no faults.

    A function of the files alone: any number of threads finds the same in the same order.
    """
    faults = Faults({}, {})
    if not isinstance(images, FileImages):
        return faults
    rows = range(len(images))
    results = decoded(images, lambda row: examine(images.path(row)), rows, workers)
    with tqdm(total=len(images), desc=title, unit=" images", disable=None, delay=DELAY) as bar:
        for row, result in zip(rows, results, strict=True):
            _note(faults, row, *result)
            bar.update()
    return faults


def _note(faults: Faults, row: int, unreadable: str, odd: Sequence[str]) -> None:
    if unreadable:
        faults.unreadable[row] = unreadable
    for kind in odd:
        faults.odd.setdefault(kind, []).append(row)


def without(part: Part, faults: Faults) -> Part:
    """The images of a part that can be read, in the same order."""
    if not faults.unreadable:
        return part
    keep = torch.ones(len(part.labels), dtype=torch.bool)
    keep[list(faults.unreadable)] = False
    return part.select(keep.nonzero()[:, 0])


def readable(splits: Splits, workers: int) -> tuple[Splits, tuple[str, ...]]:
    """The splits without the images that cannot be read, and the paths of those."""
    parts, left_out = [], []
    for part, title in zip(splits, splits._fields, strict=True):
        faults = find_faults(part.images, workers, f"examining {title}")
        left_out += [part.images.shown(row) for row in faults.unreadable]
        parts.append(without(part, faults))
    return Splits(*parts), tuple(left_out)
