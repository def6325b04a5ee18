"""Datasets whose splits are lists of image files, most of them read by torchvision."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from torchvision import datasets

from data.arrays import check_md5
from data.folder import LIST, open_folders
from data.images import Part, Splits, file_part
from utils.errors import DataError
from utils.files import read_small

# CoOp's counts of 27,000 images; the remaining 8,100 are the test part.
EUROSAT, EUROSAT_TRAIN, EUROSAT_VAL = 27_000, 13_500, 5_400


def _merged(root: Path, parts: Iterable[datasets.VisionDataset], classes: Sequence[str]) -> Part:
    """One Part from several datasets. Raises DataError for a class that `classes` has not."""
    number, samples = {name: i for i, name in enumerate(classes)}, []
    for part in parts:
        unknown = sorted(set(part.classes) - number.keys())
        if unknown:
            raise DataError(f"the test set in {root} has classes that the training set has not "
                            f"({', '.join(unknown[:3])}): get the dataset again")
        labels = (number[part.classes[label]] for label in part._labels)
        samples += zip(part._image_files, labels, strict=True)
    return file_part(root, samples, classes)


def open_lists(root: Path, kind: type[datasets.VisionDataset], train: tuple[str, ...]) -> Splits:
    """The lists of torchvision's dataset: those of `train` to train on, and `test`."""
    *parts, test = (kind(root, split) for split in (*train, "test"))
    classes = getattr(kind, "classes", sorted({name for part in parts for name in part.classes}))
    return Splits(_merged(root, parts, classes), _merged(root, [test], classes))


def open_pets(root: Path) -> Splits:
    """trainval to train on, test; the labels are the numbers in the lists."""
    train, test = (datasets.OxfordIIITPet(root, split) for split in ("trainval", "test"))
    parts = (zip(part._images, part._labels, strict=True) for part in (train, test))
    return Splits(*(file_part(root, samples, train.classes) for samples in parts))


def open_flowers_official(root: Path) -> Splits:
    """The official split: train 1,020 + val 1,020 to train on, test 6,149."""
    kind = datasets.Flowers102
    check_md5((root / "flowers-102" / name, md5) for key, (name, md5) in kind._file_dict.items()
              if key != "image")
    return open_lists(root, kind, ("train", "val"))


def open_flowers_coop(root: Path) -> Splits:
    """CoOp's split: train 4,093 + val 1,633 to train on, test 2,463."""
    path = root / "split_zhou_OxfordFlowers.json"
    try:
        split = json.loads(read_small(path, LIST))
        parts = [*split["train"], *split["val"]], split["test"]
        pairs = {(int(label), str(name)) for part in parts for _, label, name in part}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged or no split file of CoOp's: get it again") from error
    names = dict(pairs)
    if len(names) < len(pairs):
        raise DataError(f"{path} gives one class two names, so that labels of its parts may not "
                        "agree: get it again")
    classes = [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]
    samples = ([(root / "jpg" / file, label) for file, label, _ in part] for part in parts)
    return Splits(*(file_part(root, part, classes) for part in samples))


def open_cars(root: Path) -> Splits:
    """The Kaggle tree of class folders, or the original archives in torchvision's layout."""
    tree = root / "car_data" / "car_data"
    if tree.is_dir():
        return open_folders(tree)
    train, test = (datasets.StanfordCars(root, split) for split in ("train", "test"))
    return Splits(*(file_part(root, part._samples, train.classes) for part in (train, test)))


def open_gtsrb(root: Path) -> Splits:
    """All 26,640 training images for both views, 12,630 to test."""
    classes = [f"{label:05d}" for label in range(43)]
    train, test = (datasets.GTSRB(root, split)._samples for split in ("train", "test"))
    numbered = [(path, int(Path(path).parent.name)) for path, _ in train]
    return Splits(file_part(root, numbered, classes), file_part(root, test, classes))


def open_eurosat(root: Path) -> Splits:
    """13,500 to train on, 8,100 to test, 5,400 left aside; stratified, always the same."""
    dataset = datasets.EuroSAT(root)
    count = len(dataset.samples)
    whole = file_part(root, dataset.samples, dataset.classes)
    train, rest = whole.split(count * EUROSAT_TRAIN // EUROSAT, 0, "eurosat")
    _, test = rest.split(count * EUROSAT_VAL // EUROSAT, 0, "eurosat val")
    return Splits(train, test)


def open_sun397(root: Path) -> Splits:
    """Training_01 and Testing_01 of the official partitions, 19,850 images each."""
    places = (root / "Partitions", root / "SUN397" / "Partitions", root)
    lists = next(place for place in places if (place / "Training_01.txt").is_file())
    classes = read_small(lists / "ClassName.txt").decode().split()
    number = {name: label for label, name in enumerate(classes)}
    parts = []
    for split in ("Training_01", "Testing_01"):
        names = read_small(lists / f"{split}.txt", LIST).decode().split()
        samples = [(root / "SUN397" / name.lstrip("/"), number[name.rpartition("/")[0]])
                   for name in names]
        parts.append(file_part(root, samples, classes))
    return Splits(*parts)
