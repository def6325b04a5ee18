"""A user's own images as people lay them out: which folder is what."""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

# Every raster format that Pillow reads by itself, beside those that torchvision looks for.
ENDINGS = (*IMG_EXTENSIONS, ".jfif", ".jpe", ".gif", ".avif", ".jp2", ".tga", ".dib", ".apng")
SPLITS = {"train": ("train", "training"), "test": ("test", "testing"),
          "val": ("val", "valid", "validation", "dev", "eval")}  # fmt: skip
# What systems leave in folders.
JUNK = ("__macosx", "@eadir", "__pycache__", "lost+found", "$recycle.bin", "#recycle",
        "system volume information")  # fmt: skip
DEEPEST = 3  # wrapping folders


class Layout(NamedTuple):
    """Where class folders lie; no `test` means that a part of `train` is taken for it."""

    train: Path
    test: Path | None = None
    unused: Path | None = None  # a validation part beside a test part


def is_image(path: str) -> bool:
    """Whether a name ends like a picture's; `._x.jpg`, which macOS makes, is none."""
    return path.lower().endswith(ENDINGS) and not os.path.basename(path).startswith(".")


def is_junk(name: str) -> bool:
    """Whether a folder is hidden or a system's own."""
    return name[:1] == "." or name.lower() in JUNK


def composed(name: str) -> str:
    """A name as one sequence of letters: folders from a Mac have their accents apart."""
    return unicodedata.normalize("NFC", name)


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without those of systems."""
    return sorted(e.name for e in os.scandir(folder)
                  if os.path.isdir(e.path) and not is_junk(e.name))  # fmt: skip


def find_layout(root: Path, depth: int = DEEPEST) -> Layout | None:
    """The splits or the classes in a folder, or in one folder that wraps them; None without any."""
    if depth < 0 or not root.is_dir():
        return None
    names = {name.lower(): root / name for name in reversed(folders_in(root))}
    parts = {kind: _part(names, words) for kind, words in SPLITS.items()}
    # A class may be called train: parts hold folders, classes hold images.
    split = any(part and folders_in(part) for part in parts.values())
    if parts["train"] and (split or not _holds_images(parts["train"])):
        test, val = parts["test"], parts["val"]
        if val and not (test and folders_in(test)):  # pictures without labels, as Kaggle has them
            test = None
        return Layout(parts["train"], test or val, val if test else None)
    if any(map(_holds_images, names.values())):
        return Layout(root)
    inside = [found for folder in names.values() if (found := find_layout(folder, depth - 1))]
    if len(inside) == 1:  # beside folders of other things, as docs/
        return inside[0]
    nested = (folder / name for folder in names.values() for name in folders_in(folder))
    return Layout(root) if any(map(_holds_images, nested)) else None


def _part(names: Mapping[str, Path], words: Sequence[str]) -> Path | None:
    """The folder of a part: called one of `words`, or with one in it, as seg_train or Train Set."""
    for word in words:
        if word in names:
            return _unwrapped(names[word])
    within = (path for name, path in names.items() if {*re.split("[^a-z]+", name)} & {*words})
    return next((_unwrapped(path) for path in within if not _holds_images(path)), None)


def _unwrapped(folder: Path) -> Path:
    """The folder with the class folders: `test/test/<class>` is what zips unpack to."""
    names = folders_in(folder)
    inside = folder / names[0] if len(names) == 1 else None
    wraps = inside and not _holds_images(folder) and not _holds_images(inside)
    return inside if wraps and folders_in(inside) else folder


def _holds_images(folder: Path) -> bool:
    return any(is_image(entry.name) for entry in os.scandir(folder))
