"""A small part of a dataset as class folders, for measurements that must not take hours.

`python -m benchmarks.pictures --data FOLDER --train 800 --test 1000 --to SMALL` writes
SMALL/train and SMALL/test for `--dataset imagefolder`: a fixed stratified choice of the training
images, the one of `--train_images`, and the first test images of each class. With `--validation`
these are other training images, on which settings may be chosen. Files are copied as they are.
"""

import argparse
import shutil
from pathlib import Path

import torch
from PIL import Image

from data.images import FileImages, Part
from data.opening import open_splits
from data.specs import SPECS


def first_of_each(part: Part, count: int) -> Part:
    """The first `count` images of the part, the classes alike."""
    each = count // len(part.classes)
    rows = [(part.labels == label).nonzero()[:each, 0] for label in range(len(part.classes))]
    return part.select(torch.cat(rows).sort().values)


def write(part: Part, folder: Path) -> None:
    """The images of a part, in its order, as FOLDER/class/number."""
    for row, label in enumerate(part.labels.tolist()):
        place = folder / part.classes[label] / f"{row:05d}"
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(part.images, FileImages):
            path = part.images.path(row)
            shutil.copyfile(path, place.with_suffix(path.suffix))
        else:
            pixels = part.images.pixels[row].permute(1, 2, 0).squeeze(2).numpy()
            Image.fromarray(pixels).save(place.with_suffix(".png"))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", choices=tuple(SPECS), default="imagefolder")
    parser.add_argument("--data", help="as for a run")
    parser.add_argument("--train", type=int, required=True, help="training images")
    parser.add_argument("--test", type=int, required=True, help="test images")
    parser.add_argument("--validation", action="store_true", help="of other training images")
    parser.add_argument("--to", type=Path, required=True)
    chosen = parser.parse_args()
    if chosen.to.exists():
        return  # a script that is run again
    splits = open_splits(chosen.dataset, chosen.data, download=False)
    train, others = splits.train.split(chosen.train, "train_images")
    test = others if chosen.validation else splits.test
    aside = chosen.to.with_name(f"{chosen.to.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    write(train, aside / "train")
    write(first_of_each(test, chosen.test), aside / "test")
    aside.rename(chosen.to)


if __name__ == "__main__":
    main()
