"""A dataset by its name: found or fetched, opened, and checked."""

from pickle import UnpicklingError

from data.images import Splits
from data.locate import locate
from data.picture import UNREADABLE
from data.specs import SPECS
from utils.errors import DataError

PARTS = ("training", "test")  # as messages call them
DAMAGED = (*UNREADABLE, RuntimeError, UnpicklingError)


def open_splits(name: str, folder: str | None, download: bool) -> Splits:
    """The whole training and test part of a dataset, checked: none empty, every label a class.

    `folder` is where to look, None for the default places. Raises DataError.
    """
    spec = SPECS[name]
    root = locate(name, spec, folder, download)
    try:
        splits = spec.open(root)
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} in {root.absolute()} is damaged ({reason}): remove it there and "
                        f"get it again from {spec.source}") from error
    require_images(splits, f"{name} in {root.absolute()}")
    for part, images in zip(PARTS, splits, strict=True):
        labels = images.labels
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(images.classes):
            raise DataError(f"{name} in {root.absolute()} has {part} labels outside its "
                            f"{len(images.classes)} classes: get it again from {spec.source}")
    return splits


def require_images(splits: Splits, source: str) -> None:
    """Raises DataError when a part is empty."""
    for part, images in zip(PARTS, splits, strict=True):
        if not len(images.labels):
            raise DataError(f"{source} has no {part} images")
