"""From flags to views: find the dataset, hold out what is asked for, make the views."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from data.cache import resized, room
from data.faults import readable
from data.images import Part, Splits, printable
from data.opening import PARTS, open_splits, require_images
from data.specs import SPECS
from data.transforms import clean_size
from data.views import Look, View
from utils.config import flag, number
from utils.errors import UsageError

GROUP = "data"
NAMED = 3  # images or classes that a message names; the rest it counts


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
        2, "threads that decode image files; 0 decodes in the main one",
        parse=number(int, 0), group=GROUP)
    val_fraction: float = flag(
        0.0, "share of the training images held out to choose the best epoch, at most 0.5",
        parse=number(float, 0, 0.5), group=GROUP)
    train_images: int = flag(
        0, "train on so many images, a fixed choice with the classes in proportion; 0 is all",
        parse=number(int, 0), group=GROUP)
    download: bool = flag(True, "fetch a missing dataset where torchvision can", group=GROUP)
    bad_images: str = flag(
        "stop", "image files that cannot be read: stop the run, or skip leaves them out, the "
        "same ones each time, after a look at every file", choices=("stop", "skip"), group=GROUP)
    cache_gb: float | None = flag(
        None, "memory for resized images in GB; 0 keeps none (default: a quarter of the memory)",
        parse=number(float, 0), group=GROUP)


@dataclass(frozen=True)
class Data:
    """The views of one dataset.

    clean       training images, augmented: resized to 9/8, cut at random, mirrored half the time
    prompted    the same images, only resized
    test, val   only resized, in a fixed order; val is None unless a part is held out
    left_out    paths of images that cannot be read (--bad_images skip)
    empty       classes without an image in the whole training part, and in the test part
    """

    clean: View
    prompted: View
    test: View
    val: View | None
    classes: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    empty: tuple[tuple[str, ...], ...] = ((), ())

    @property
    def notes(self) -> list[str]:
        """What the user should know: images that were left out, classes that have none."""
        notes, classes = [], len(self.classes)
        for part, empty in zip(PARTS, self.empty, strict=True):
            if empty:
                share = f"{len(empty):,} of {classes:,}"
                notes.append(f"classes without {part} images: {share} ({first_few(empty)})")
        if self.left_out:
            left_out = shortened(self.left_out)
            notes.append(f"images that cannot be read and are left out: {left_out}")
        return notes

    def measured_in(self, size: int) -> "Data":
        """The same views, those that are only measured in batches of `size` images."""
        val = self.val and self.val.in_batches_of(size)
        return replace(self, test=self.test.in_batches_of(size), val=val)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with the images, labels, counts or classes.

        Pixels in memory are read whole. Of files all names, up to 20,000 sizes and 256 contents
        a part are looked at: what that does not notice, `FileImages.identity` says.
        """
        digest = hashlib.sha256(repr(self.classes).encode())
        for view in (self.clean, self.test, self.val):
            for piece in view.identity() if view else ():
                digest.update(piece)
        return digest.hexdigest()[:16]


def load_data(config: DataConfig, input_size: int, batch_size: int, device: torch.device) -> Data:
    """The views of `config.dataset` as images of `input_size` pixels on `device`.

    Nothing is decoded before the first batch, unless unreadable images are to be left out. Raises
    DataError when the data are missing, damaged or inconsistent, UsageError when more training
    images are asked for than there are.
    """
    splits, left_out = open_splits(config.dataset, config.data, config.download), ()
    if config.bad_images == "skip":
        splits, left_out = readable(splits, config.workers)
        require_images(splits, f"{config.dataset}, without what cannot be read,")
    views = make_views(splits, config, Look(input_size, input_size, batch_size, device))
    return replace(views, left_out=left_out, empty=tuple(map(without_images, splits)))


def make_views(splits: Splits, config: DataConfig, still: Look) -> Data:
    """The views of these splits; `still` is how test images are shown."""
    train, val = hold_out(splits.train, config)
    drawn = replace(still, shuffled=True)
    augmented = replace(drawn, resize_to=clean_size(still.size), augmented=True)
    space, workers = room(config.cache_gb, still.device), config.workers
    pixels = resized(train.images, (augmented.resize_to, still.size), space, workers)

    def fixed(name: str, part: Part) -> View:
        return View(name, resized(part.images, (still.size,), space, workers), part.labels, still)

    return Data(
        clean=View("clean", pixels, train.labels, augmented),
        prompted=View("prompted", pixels, train.labels, drawn),
        test=fixed("test", splits.test),
        val=fixed("val", val) if val else None,
        classes=train.classes,
    )


def without_images(part: Part) -> tuple[str, ...]:
    """The names of the classes of which a part has no image, for a message."""
    counts = part.labels.bincount(minlength=len(part.classes)).tolist()
    named = zip(part.classes, counts, strict=True)
    return tuple(printable(name) for name, count in named if not count)


def shortened(paths: Sequence[str]) -> str:
    """The number of images and the first few of their paths."""
    return f"{len(paths):,} ({first_few(paths)})"


def first_few(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    rest = f" and {more:,} more" if more > 0 else ""
    return f"{', '.join(names[:NAMED])}{rest}"


def hold_out(train: Part, config: DataConfig) -> tuple[Part, Part | None]:
    """The training images to use and those held out; the same for every seed."""
    val = None
    if count := round(config.val_fraction * len(train.labels)):
        val, train = train.split(count, "val")
    if config.train_images > len(train.labels):
        raise UsageError(f"--train_images {config.train_images}: {config.dataset} has "
                         f"{len(train.labels)} training images")
    if config.train_images:
        train = train.split(config.train_images, "train_images")[0]
    return train, val
