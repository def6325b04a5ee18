"""The datasets that torchvision knows: its classes, its layouts, its MD5 checks."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from data.folder import open_folders
from data.images import Part, Splits, array_part, file_part
from data.splits import stratified
from utils.errors import DataError

Listed = tuple[list[Path], list[int], list[str]]  # paths, labels, names of these labels
EUROSAT_TRAIN, EUROSAT_VAL = 13_500, 5_400  # CoOp's counts of 27,000; the other 8,100 are the test


def check_md5(files: Iterable[tuple[Path, str]]) -> None:
    """Raise DataError that names the first file that is missing or has another MD5 sum."""
    for path, md5 in files:
        if not check_integrity(path, md5):
            what = "is damaged (wrong MD5 sum)" if path.is_file() else "is missing"
            raise DataError(f"{path} {what}: remove its folder or archive and get it again")


def _cifar(kind: type[datasets.CIFAR10], root: Path) -> Splits:
    base, meta = root / kind.base_folder, kind.meta
    listed = [*kind.train_list, *kind.test_list, (meta["filename"], meta["md5"])]
    check_md5((base / name, md5) for name, md5 in listed)
    parts = (kind(root, train) for train in (True, False))
    return Splits(*(array_part(p.data.transpose(0, 3, 1, 2), p.targets, p.classes) for p in parts))


def open_cifar10(root: Path) -> Splits:
    return _cifar(datasets.CIFAR10, root)


def open_cifar100(root: Path) -> Splits:
    return _cifar(datasets.CIFAR100, root)


def open_svhn(root: Path) -> Splits:
    files = [datasets.SVHN.split_list[split][1:] for split in ("train", "test")]
    check_md5((root / name, md5) for name, md5 in files)
    parts = (datasets.SVHN(root, split) for split in ("train", "test"))
    return Splits(*(array_part(p.data, p.labels, map(str, range(10))) for p in parts))


def merged(root: Path, parts: Iterable[Listed], classes: list[str]) -> Part:
    """One Part from several, numbered by place in `classes`.

    Raises DataError for a class that `classes` has not.
    """
    number, paths, labels = {name: i for i, name in enumerate(classes)}, [], []
    for files, own, names in parts:
        unknown = sorted(set(names) - set(classes))
        if unknown:
            raise DataError(f"the test set in {root} has classes that the training set has not "
                            f"({', '.join(unknown[:3])}): get the dataset again")
        paths += files
        labels += [number[names[label]] for label in own]
    return file_part(root, paths, labels, classes)


def sampled(root: Path, samples: Sequence[tuple[str, int]], classes: Sequence[str]) -> Part:
    """A Part from (path, label) pairs."""
    return file_part(root, [path for path, _ in samples], [label for _, label in samples], classes)


def _listed(dataset: datasets.VisionDataset) -> Listed:
    return dataset._image_files, dataset._labels, dataset.classes


def open_dtd(root: Path) -> Splits:
    """Partition 1: train + val to train on, test."""
    train, val, test = (_listed(datasets.DTD(root, split)) for split in ("train", "val", "test"))
    classes = sorted({*train[2], *val[2]})
    return Splits(merged(root, (train, val), classes), merged(root, (test,), classes))


def open_food101(root: Path) -> Splits:
    train, test = (_listed(datasets.Food101(root, split)) for split in ("train", "test"))
    return Splits(merged(root, (train,), train[2]), merged(root, (test,), train[2]))


def open_pets(root: Path) -> Splits:
    """trainval to train on, test; the labels are the numbers in the lists."""
    train, test = (datasets.OxfordIIITPet(root, split) for split in ("trainval", "test"))
    return Splits(*(file_part(root, p._images, p._labels, train.classes) for p in (train, test)))


def open_flowers_official(root: Path) -> Splits:
    """The official split: train 1,020 + val 1,020 to train on, test 6,149."""
    kind = datasets.Flowers102
    check_md5((root / "flowers-102" / name, md5) for key, (name, md5) in kind._file_dict.items()
              if key != "image")
    train, val, test = (_listed(kind(root, split)) for split in ("train", "val", "test"))
    both = (train, val)
    return Splits(merged(root, both, kind.classes), merged(root, (test,), kind.classes))


def open_cars(root: Path) -> Splits:
    """The Kaggle tree of class folders, or the original archives in torchvision's layout."""
    tree = root / "car_data" / "car_data"
    if tree.is_dir():
        return open_folders(tree)
    parts = [datasets.StanfordCars(root, split) for split in ("train", "test")]
    return Splits(*(sampled(root, part._samples, parts[0].classes) for part in parts))


def open_gtsrb(root: Path) -> Splits:
    """All 26,640 training images for both views, 12,630 to test."""
    classes = [f"{label:05d}" for label in range(43)]
    train, test = (datasets.GTSRB(root, split)._samples for split in ("train", "test"))
    numbered = [(path, int(Path(path).parent.name)) for path, _ in train]
    return Splits(sampled(root, numbered, classes), sampled(root, test, classes))


def open_eurosat(root: Path) -> Splits:
    """13,500 to train on, 8,100 to test, 5,400 left aside; stratified, always the same."""
    found = datasets.EuroSAT(root)
    whole = sampled(root, found.samples, found.classes)
    count = len(whole.labels)
    train, rest = stratified(whole.labels, count * EUROSAT_TRAIN // 27_000, 0, "eurosat")
    others = whole.select(rest)
    _, test = stratified(others.labels, count * EUROSAT_VAL // 27_000, 0, "eurosat val")
    return Splits(whole.select(train), others.select(test))
