"""From flags to views: find the dataset, hold out what is asked for, make the views."""

import hashlib
import pickle
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from data.cache import resized, room
from data.images import UNREADABLE, Part, Splits
from data.locate import locate
from data.specs import SPECS
from data.splits import stratified
from data.transforms import clean_size
from data.views import Look, View
from utils.config import flag, number
from utils.errors import DataError, UsageError

GROUP = "data"
DAMAGED = (*UNREADABLE, RuntimeError, LookupError, TypeError, pickle.UnpicklingError)


@dataclass(frozen=True)
class DataConfig:
    """Which images, how many, and how they are fed."""

    dataset: str = flag("dtd", "dataset", choices=tuple(SPECS), group=GROUP)
    data: str | None = flag(
        None, "folder D of the data: looked for in D/<dataset>, then in D "
        "(default: dataset, then datasets)", parse=str, group=GROUP)
    input_size: int | None = flag(
        None, "side of the images in pixels (default: the network's)",
        parse=number(int, 1), group=GROUP)
    batch_size: int | None = flag(
        None, "images a batch (default: the dataset's)", parse=number(int, 1), group=GROUP)
    workers: int = flag(
        2, "processes that decode image files; 0 decodes in the main one",
        parse=number(int, 0), group=GROUP)
    val_fraction: float = flag(
        0.0, "share of the training images held out to choose the best epoch, at most 0.5",
        parse=number(float, 0, 0.5), group=GROUP)
    train_images: int = flag(
        0, "train on so many images, a fixed choice with the classes in proportion; 0 is all",
        parse=number(int, 0), group=GROUP)
    download: bool = flag(True, "fetch a missing dataset where torchvision can", group=GROUP)
    cache_gb: float | None = flag(
        None, "memory for resized images in GB; 0 keeps none (default: a quarter of the memory)",
        parse=number(float, 0), group=GROUP)


@dataclass(frozen=True)
class Data:
    """The views of one dataset.

    clean       training images, augmented: resized to 9/8, cut at random, mirrored half the time
    prompted    the same images, only resized
    test, val   only resized, in a fixed order; val is None unless a part is held out
    """

    clean: View
    prompted: View
    test: View
    val: View | None
    classes: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with the images, labels, counts or classes.

        Pixels in memory are read whole; of files, the names and some sizes.
        """
        digest = hashlib.sha256(repr(self.classes).encode())
        for view in (self.clean, self.test, self.val):
            for piece in view.identity() if view else ():
                digest.update(piece)
        return digest.hexdigest()[:16]


def load_data(config: DataConfig, input_size: int, batch_size: int, device: torch.device) -> Data:
    """The views of `config.dataset` as images of `input_size` pixels on `device`.

    Nothing is decoded before the first batch. Raises DataError when the data are missing, damaged
    or inconsistent, UsageError when more training images are asked for than there are.
    """
    splits = open_splits(config)
    train, val = hold_out(splits.train, config)
    still = Look(input_size, input_size, batch_size, device)
    drawn = replace(still, shuffled=True)
    augmented = replace(drawn, resize_to=clean_size(input_size), augmented=True)
    space, workers = room(config.cache_gb, device), config.workers
    pixels = resized(train.images, (augmented.resize_to, input_size), space, workers)

    def fixed(name: str, part: Part) -> View:
        return View(name, resized(part.images, (input_size,), space, workers), part.labels, still)

    return Data(
        clean=View("clean", pixels, train.labels, augmented),
        prompted=View("prompted", pixels, train.labels, drawn),
        test=fixed("test", splits.test),
        val=fixed("val", val) if val else None,
        classes=train.classes,
    )


def open_splits(config: DataConfig) -> Splits:
    """The whole training and test part, checked: none empty, every label a class."""
    name, spec = config.dataset, SPECS[config.dataset]
    root = locate(name, spec, config.data, config.download)
    try:
        splits = spec.open(root)
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} in {root.absolute()} is damaged ({reason}): remove it there and "
                        f"get it again from {spec.source}") from error
    for part, images in zip(("training", "test"), splits, strict=True):
        labels = images.labels
        if not len(labels):
            raise DataError(f"{name} in {root.absolute()} has no {part} images")
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(images.classes):
            raise DataError(f"{name} in {root.absolute()} has {part} labels outside its "
                            f"{len(images.classes)} classes")
    return splits


def hold_out(train: Part, config: DataConfig) -> tuple[Part, Part | None]:
    """The training images to use and those held out; the same for every seed."""
    val = None
    if count := round(config.val_fraction * len(train.labels)):
        chosen, rest = stratified(train.labels, count, "val")
        train, val = train.select(rest), train.select(chosen)
    if config.train_images > len(train.labels):
        raise UsageError(f"--train_images {config.train_images}: {config.dataset} has "
                         f"{len(train.labels)} training images")
    if config.train_images:
        train = train.select(stratified(train.labels, config.train_images, "train_images")[0])
    return train, val
