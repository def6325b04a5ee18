"""Datasets whose splits are lists of files that torchvision does not read."""

import json
from pathlib import Path

from data.images import Splits, file_part
from utils.errors import DataError


def open_flowers_coop(root: Path) -> Splits:
    """CoOp's split: train 4,093 + val 1,633 to train on, test 2,463."""
    path = root / "split_zhou_OxfordFlowers.json"
    try:
        split = json.loads(path.read_text())
        rows = [*split["train"], *split["val"]], split["test"]
        called = {(int(label), str(name)) for part in rows for _, label, name in part}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged or no split file of CoOp's: get it again") from error
    names = dict(called)
    if len(names) < len(called):
        raise DataError(f"{path} gives one class two names, so that labels of its parts may not "
                        "agree: get it again")
    classes = [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]
    parts = (([root / "jpg" / row[0] for row in part], [row[1] for row in part]) for part in rows)
    return Splits(*(file_part(root, paths, labels, classes) for paths, labels in parts))


def open_sun397(root: Path) -> Splits:
    """Training_01 and Testing_01 of the official partitions, 19,850 images each."""
    places = (root / "Partitions", root / "SUN397" / "Partitions", root)
    lists = next(place for place in places if (place / "Training_01.txt").is_file())
    classes = (lists / "ClassName.txt").read_text().split()
    number = {name: label for label, name in enumerate(classes)}
    parts = []
    for split in ("Training_01", "Testing_01"):
        names = (lists / f"{split}.txt").read_text().split()
        labels = [number[name.rpartition("/")[0]] for name in names]
        paths = [root / "SUN397" / name.lstrip("/") for name in names]
        parts.append(file_part(root, paths, labels, classes))
    return Splits(*parts)
