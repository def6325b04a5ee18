"""From flags to views: find the dataset, hold out what is asked for, make the views."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from data.augment import KINDS, Augment
from data.cache import Resized, room
from data.faults import readable
from data.images import Part, Splits, shortened
from data.opening import PARTS, TEST_FRACTION, open_splits, require_images
from data.specs import SPECS
from data.transforms import clean_size
from data.views import Look, View
from utils.config import flag, number, path_or_word
from utils.errors import UsageError, printable
from utils.together import from_first, one_first


@dataclass(frozen=True)
class DataConfig:
    """Which images, how many, and how they are fed."""

    dataset: str = flag("dtd", "dataset", choices=tuple(SPECS))
    data: str | None = flag(
        None, "folder D of the data: looked for in D/<dataset>, then in D "
        "(default: dataset, then datasets)", parse=path_or_word, identity=False)
    input_size: int | None = flag(
        None, "side of the images in pixels (default: the network's)", parse=number(int, 1, 4096))
    batch_size: int | None = flag(
        None, "images a batch (default: the dataset's)", parse=number(int, 1))
    workers: int = flag(
        2, "threads that decode image files; 0 decodes in the main one", parse=number(int, 0),
        identity=False)
    val_fraction: float = flag(
        0.0, "share of the training images held out to choose the best epoch, at most 0.5",
        parse=number(float, 0, 0.5))
    train_images: int = flag(
        0, "train on so many images, a fixed choice with the classes in proportion; 0 is all",
        parse=number(int, 0))
    test_fraction: float = flag(
        TEST_FRACTION, "share of your own images that is the test part where they have none",
        parse=number(float, 0.001, 0.9))
    augment: str = flag(
        "paper", "augmentation of the clean training images: paper cuts and mirrors, trivial and "
        "rand are torchvision's TrivialAugmentWide and RandAugment on top, none is none",
        choices=KINDS)
    mixup: float = flag(
        0.0, "mix clean training images and their labels in pairs, with this alpha (Zhang et al. "
        "2018); 0 for none", parse=number(float, 0))
    cutmix: float = flag(
        0.0, "the same, a rectangle of one laid over the other (Yun et al. 2019); with both flags "
        "each batch gets one of the two", parse=number(float, 0))
    download: bool = flag(True, "fetch a missing dataset where torchvision can", identity=False)
    bad_images: str = flag(
        "stop", "image files that cannot be read: stop the run, or skip leaves them out, the "
        "same ones each time, after a look at every file", choices=("stop", "skip"))
    cache_gb: float | None = flag(
        None, "memory for resized images in GB; 0 keeps none (default: a quarter of the memory)",
        parse=number(float, 0), identity=False)


@dataclass(frozen=True)
class Data:
    """The views of one dataset."""

    clean: View  # training images: resized to 9/8, cut at random, mirrored half the time
    prompted: View  # the same images, only resized
    test: View  # only resized, in a fixed order
    val: View | None  # so, too; None unless a part is held out
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()  # for the user: images that were left out, classes that have none

    def measured_in(self, size: int) -> "Data":
        """The same views, those that are only measured in batches of `size` images."""
        val = self.val and self.val.in_batches_of(size)
        return replace(self, test=self.test.in_batches_of(size), val=val)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with the images, labels, counts or classes.

        Pixels in memory are read whole; what is looked at of files, and what therefore is not
        noticed, `FileImages.identity` says.
        """
        digest = hashlib.sha256(repr(self.classes).encode())
        for view in (self.clean, self.test, self.val):
            for piece in view.identity() if view else ():
                digest.update(piece)
        return digest.hexdigest()[:16]


def load_data(config: DataConfig, input_size: int, batch_size: int, device: torch.device) -> Data:
    """The views of `config.dataset` as images of `input_size` pixels on `device`.

    Nothing is decoded before the first batch, unless unreadable images are to be left out. Raises
    DataError, and UsageError when more training images are asked for than there are.
    """
    splits = one_first(lambda: open_splits(
        config.dataset, config.data, config.download, config.test_fraction))  # fmt: skip
    left_out: list[str] = []
    if config.bad_images == "skip":
        splits, faults = from_first(lambda: readable(splits, config.workers))
        require_images(splits, f"{config.dataset}, without what cannot be read,")
        left_out = [path for part in faults for path in part.unreadable]
    views = make_views(splits, config, Look(input_size, input_size, batch_size, device))
    return replace(views, notes=tuple(_notes(splits, left_out)))


def make_views(splits: Splits, config: DataConfig, still: Look) -> Data:
    """The views of these splits; `still` is how test images are shown."""
    train, val = hold_out(splits.train, config)
    drawn = replace(still, shuffled=True)
    more = Augment(config.augment, config.mixup, config.cutmix, len(train.classes))
    augmented = replace(drawn, more=more)
    if config.augment != "none":
        augmented = replace(augmented, resize_to=clean_size(still.size), augmented=True)
    space, workers = room(config.cache_gb, still.device), config.workers
    sizes = dict.fromkeys((augmented.resize_to, still.size))
    pixels = Resized(train.images, tuple(sizes), space, workers)

    def fixed(name: str, part: Part) -> View:
        return View(name, Resized(part.images, (still.size,), space, workers), part.labels, still)

    return Data(
        clean=View("clean", pixels, train.labels, augmented),
        prompted=View("prompted", pixels, train.labels, drawn),
        test=fixed("test", splits.test),
        val=fixed("val", val) if val else None,
        classes=train.classes,
    )


def _notes(splits: Splits, left_out: Sequence[str]) -> Iterator[str]:
    for name, part in zip(PARTS, splits, strict=True):
        counts = part.labels.bincount(minlength=len(part.classes)).tolist()
        classes = list(zip(map(printable, part.classes), counts, strict=True))
        if empty := [label for label, count in classes if not count]:
            yield f"classes without {name} images: {shortened(empty, f' of {len(counts):,}')}"
        lonely = [label for label, count in classes if count == 1 < max(counts)]
        if name == PARTS[0] and lonely:
            yield f"classes with one {name} image: {shortened(lonely)}"
    yield from splits.notes
    if len(splits.train.classes) == 1:
        yield f"there is one class only, {printable(splits.train.classes[0])}"
    if left_out:
        yield f"images that cannot be read and are left out: {shortened(left_out)}"


def hold_out(train: Part, config: DataConfig) -> tuple[Part, Part | None]:
    """The training images to use and those held out; the same for every seed."""
    val, wanted = None, config.train_images
    if count := round(config.val_fraction * len(train.labels)):
        val, train = train.split(count, "val")
    if wanted > len(train.labels):
        raise UsageError(f"--train_images {wanted}: {config.dataset} has {len(train.labels)} "
                         "training images")
    return train.split(wanted, "train_images")[0] if wanted else train, val
