"""Which files of a dataset cannot be read, and which are converted on the way to RGB."""

from typing import NamedTuple

import torch
from tqdm import tqdm

from data.decoding import decoded
from data.images import FileImages, Part, Splits
from data.picture import examine

DELAY = 2.0  # seconds before a progress bar appears


class Faults(NamedTuple):
    """Paths of images: why each unreadable one is, and the odd ones by what is converted."""

    unreadable: dict[str, str]
    odd: dict[str, list[str]]


def readable(splits: Splits, workers: int) -> tuple[Splits, tuple[Faults, ...]]:
    """The splits without images that cannot be read, and the faults: the same for any threads."""
    parts, faults = zip(*map(_examine_part, splits, splits._fields, [workers] * 2), strict=True)
    return Splits(*parts), faults


def _examine_part(part: Part, name: str, workers: int) -> tuple[Part, Faults]:
    """The readable images of a part, and the faults of all; arrays have none."""
    images, rows, faults = part.images, [], Faults({}, {})
    if not isinstance(images, FileImages):
        return part, faults
    results = decoded(images, lambda row: examine(images.path(row)), range(len(images)), workers)
    with tqdm(results, f"examining {name}", len(images), unit=" images", disable=None,
              delay=DELAY) as bar:  # fmt: skip
        for row, (reason, oddities) in enumerate(bar):
            if reason:
                faults.unreadable[images.shown(row)] = reason
            else:
                rows.append(row)
            for kind in oddities:
                faults.odd.setdefault(kind, []).append(images.shown(row))
    return part.select(torch.tensor(rows, dtype=torch.int64)), faults
