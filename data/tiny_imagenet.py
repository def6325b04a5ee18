"""Tiny-ImageNet-200: the official archive, or one whose val folder was sorted by class."""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from data.folder import ANNOTATIONS, class_folders, scan
from data.images import Part, Splits, file_part
from utils.errors import DataError


def open_tiny_imagenet(root: Path) -> Splits:
    """100,000 training images; the test part is the official val. Label: rank of the wnid."""
    base = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    classes = class_folders(base / "train")
    listed = base / "wnids.txt"
    if listed.is_file() and (absent := set(listed.read_text().split()) - set(classes)):
        raise DataError(f"{base / 'train'} lacks {len(absent)} of the classes of {listed} "
                        f"({min(absent)}): extract the archive again")
    return Splits(scan(base / "train", classes), _val(base / "val", classes))


def _val(folder: Path, classes: list[str]) -> Part:
    """val/images with val_annotations.txt, or folders by wnid in val or in val/images."""
    annotations, images = folder / ANNOTATIONS, folder / "images"
    if _has_files(images):
        if annotations.is_file():
            return _annotated(images, annotations, classes)
        raise DataError(f"{images} is not sorted by class and {annotations} is missing: "
                        "their labels are unknown; extract the archive again")
    sorted_here = images.is_dir() and any(e.is_dir() for e in images.iterdir())
    return scan(images if sorted_here else folder, classes, ignore=("images",))


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(e.is_file() for e in folder.iterdir())


def _annotated(images: Path, annotations: Path, classes: list[str]) -> Part:
    number = {wnid: i for i, wnid in enumerate(classes)}
    rows = [line.split() for line in annotations.read_text().splitlines() if line.strip()]
    wrong = next((row for row in rows if len(row) < 2 or row[1] not in number), None)
    if wrong:
        raise DataError(f"{annotations} has a line of no known class ({' '.join(wrong)}): "
                        "extract the archive again")
    named, present = {row[0] for row in rows}, {entry.name for entry in images.iterdir()}
    absent = named - present
    if absent:
        raise DataError(f"{images} lacks {len(absent)} images of {annotations} ({min(absent)}): "
                        "extract the archive again")
    unnamed = {name for name in present - named if _is_image(name)}
    if unnamed:
        raise DataError(f"{annotations} does not name {len(unnamed)} images of {images} "
                        f"({min(unnamed)}): extract the archive again")
    paths, labels = [images / row[0] for row in rows], [number[row[1]] for row in rows]
    return file_part(images, paths, labels, classes)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMG_EXTENSIONS)
