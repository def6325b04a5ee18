"""Trees of class folders: train/<class>/... and test/ or val/."""

import os
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from data.images import Part, Splits, file_part
from utils.errors import DataError

ANNOTATIONS = "val_annotations.txt"  # the labels of Tiny-ImageNet's flat val/images


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders in `folder`, sorted. Raises DataError when there are none."""
    try:
        names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        raise DataError(f"cannot read {folder} ({error.strerror})") from error
    if not names:
        raise DataError(f"{folder} has no class folders: sort its images into one folder a class")
    return names


def scan(folder: Path, classes: list[str], ignore: tuple[str, ...] = ()) -> Part:
    """The images below `folder`, one folder a class; a class's number is its place in `classes`.

    A class without a folder keeps its number; a folder that is no class raises DataError.
    """
    known = {name: number for number, name in enumerate(classes)}
    present = [name for name in class_folders(folder) if name not in ignore]
    unknown = [name for name in present if name not in known]
    if unknown:
        raise DataError(f"{folder} has class folders that the training set has not "
                        f"({', '.join(unknown[:3])}): make their names agree")
    numbers = {name: known[name] for name in present}
    found = make_dataset(str(folder), numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    shown = [(path, label) for path, label in found if not os.path.basename(path).startswith(".")]
    return file_part(folder, [p for p, _ in shown], [label for _, label in shown], classes)


def open_folders(root: Path, test: tuple[str, ...] = ("test", "val")) -> Splits:
    """The splits in `root`/train and in the first of `root`/`test` that exists.

    Raises DataError when the folders do not agree, as in Tiny-ImageNet, which it recognises.
    """
    classes = class_folders(root / "train")
    other = next((name for name in test if (root / name).is_dir()), test[0])
    flat = (root / other / "images").is_dir() and "images" not in classes
    if flat and (root / "val" / ANNOTATIONS).is_file():
        raise DataError(f"{root} is Tiny-ImageNet as it is distributed: use "
                        "--dataset tiny_imagenet")
    return Splits(scan(root / "train", classes), scan(root / other, classes))
