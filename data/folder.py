"""Trees of class folders: train/<class>/... and test/ or val/, and Tiny-ImageNet's own."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.images import Part, Splits, file_part, shortened
from data.layouts import Layout, composed, find_layout, folders_in, is_image, is_junk
from utils.errors import DataError, note
from utils.files import read_small

LIST = 2**24  # bytes of a list of images
ANNOTATIONS = "val_annotations.txt"  # the labels of Tiny-ImageNet's flat val/images


def open_folders(root: Path, test: tuple[str, ...] = ("test", "val")) -> Splits:
    """The splits in `root`/train and in the first of `root`/`test` that exists.

    Raises DataError when the folders do not agree, as in Tiny-ImageNet, which it recognises.
    """
    other = next((name for name in test if (root / name).is_dir()), test[0])
    return _open_both(root, root / "train", root / other)


def open_own_folders(root: Path, test_fraction: float) -> Splits:
    """A user's own images as they lie in `root`; a note says what is taken for what.

    Without a test folder, `test_fraction` of the images is the test part, the same ones always.
    """
    layout = find_layout(root) or Layout(root / "train", root / "test")
    if layout.test is None:
        classes, left = _classes(layout.train), Counter()
        whole = _scan(layout.train, classes, left_out=left)
        _tell_left_out(layout.train, left)
        count = max(1, round(test_fraction * len(whole.labels)))
        note(f"{layout.train} has no test folder beside it: {count:,} of its {len(whole.labels):,} "
             "images are the test part, a fixed choice with the classes in proportion "
             "(--test_fraction)")
        test, train = whole.split(count, "test_fraction")
        return Splits(train, test)
    if layout.unused:
        note(f"{layout.unused} is not used: {layout.test} is the test part, and --val_fraction "
             "holds validation images out of the training part")
    return _open_both(root, layout.train, layout.test)


def _open_both(root: Path, train: Path, test: Path) -> Splits:
    """Both parts, one folder a class. Raises DataError for raw Tiny-ImageNet, which is flat."""
    classes, left = _classes(train), Counter()
    flat = (test / "images").is_dir() and "images" not in classes
    if flat and (root / "val" / ANNOTATIONS).is_file():
        raise DataError(f"{root} is Tiny-ImageNet as it is distributed: use "
                        "--dataset tiny_imagenet")
    parts = (train, test)
    splits = Splits(*(_scan(folder, classes, left_out=left, parts=parts) for folder in parts))
    if os.path.samefile(train, test):
        note(f"{test} is {train}: the network is tested on the images that it is trained on")
    _tell_left_out(root, left)
    return splits


def _tell_left_out(root: Path, left: Counter) -> None:
    """Say what lies among the images and is none that is read."""
    if left:
        kinds = ", ".join(f"{count:,} {end}" for end, count in left.most_common(5))
        heic = "; .heic needs a plug-in: convert them" if {".heic", ".heif"} & left.keys() else ""
        note(f"files in {root} that are left out: {kinds}{heic}")


def _class_folders(folder: Path) -> list[str]:
    """The names of the class folders in `folder`, sorted. Raises DataError when there are none."""
    try:
        names = folders_in(folder)
    except OSError as error:
        raise DataError(f"cannot read {folder} ({error.strerror}): make it readable") from error
    if not names:
        raise DataError(f"{folder} has no class folders: sort its images into one folder a class")
    return names


def _classes(folder: Path) -> list[str]:
    """The names of the classes in `folder`, sorted; two spellings of one name are one class."""
    return list({composed(name): name for name in reversed(_class_folders(folder))}.values())[::-1]


def _scan(
    folder: Path, classes: list[str], ignore: tuple[str, ...] = (), left_out: Counter | None = None,
    parts: Sequence[Path] = (),
) -> Part:  # fmt: skip
    """The images below `folder`, one folder a class; a class's number is its place in `classes`.

    A class without a folder keeps its number; a folder that is no class raises DataError. Other
    files are counted in `left_out` by the end of their name. A link to what is reached without it,
    also in another of `parts`, is not followed, and a note of the images says so. Raises DataError
    for a folder that cannot be listed.
    """
    left = Counter() if left_out is None else left_out
    numbers = {composed(name): number for number, name in enumerate(classes)}
    present = [name for name in _class_folders(folder) if name not in ignore]
    if unknown := [name for name in present if composed(name) not in numbers]:
        raise DataError(f"{folder} has class folders that the training set has not "
                        f"({', '.join(unknown[:3])}): make their names agree")
    walk, samples = _Walk([folder, *parts]), []
    for name in present:
        for place, names in walk.below(os.path.join(folder, name)):
            for path in (os.path.join(place, file) for file in sorted(names)):
                if is_image(path):
                    samples.append((path, numbers[composed(name)]))
                else:
                    left[os.path.splitext(path)[1].lower() or "without an ending"] += 1
    links = "links to folders that are reached without them are not followed"
    notes = [f"{links}: {shortened(walk.twice)}"] * bool(walk.twice)
    return file_part(folder, samples, classes, *notes)


class _Walk:
    """A walk over class folders that comes to no folder twice, however links lead to it."""

    def __init__(self, parts: Iterable[Path]) -> None:
        """Links into `parts`, and to what they lie in, are not followed."""
        self._parts = [_real(part) for part in parts]
        self._followed: set[str] = set()
        self.twice: list[str] = []  # the links that were not followed

    def below(self, top: str) -> list[tuple[str, list[str]]]:
        """The folders of a class, sorted, with the names of their files; none of a system."""
        found = []
        for place, folders, names in os.walk(top, followlinks=True, onerror=_unlisted):
            if place == top and not self._is_new(top):
                break
            found.append((place, names))
            folders[:] = [name for name in sorted(folders)
                          if not is_junk(name) and self._is_new(os.path.join(place, name))]
        return sorted(found)

    def _is_new(self, path: str) -> bool:
        if not os.path.islink(path):
            return not self._followed or _real(path) not in self._followed
        real = _real(path)
        known = any(real.startswith(part) or part.startswith(real) for part in self._parts)
        if known or any(real.startswith(place) for place in self._followed):
            self.twice.append(path)
            return False
        self._followed.add(real)
        return True


def _real(path: str | Path) -> str:
    """Where a path leads, so that those below it begin with it."""
    return os.path.join(os.path.realpath(path), "")


def _unlisted(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename} ({error.strerror}): make it readable")


def open_tiny_imagenet(root: Path) -> Splits:
    """100,000 training images; the test part is the official val. Label: rank of the wnid.

    The official archive, or one whose val folder was sorted by class.
    """
    base = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    classes = _class_folders(base / "train")
    wnids = base / "wnids.txt"
    if wnids.is_file() and (absent := set(read_small(wnids).decode().split()) - set(classes)):
        raise DataError(f"{base / 'train'} lacks {len(absent)} of the classes of {wnids} "
                        f"({min(absent)}): extract the archive again")
    return Splits(_scan(base / "train", classes), _tiny_val(base / "val", classes))


def _tiny_val(folder: Path, classes: list[str]) -> Part:
    """val/images with val_annotations.txt, or folders by wnid in val or in val/images."""
    annotations, images = folder / ANNOTATIONS, folder / "images"
    entries = list(images.iterdir()) if images.is_dir() else []
    if any(entry.is_file() for entry in entries):
        if annotations.is_file():
            return _annotated(images, annotations, classes)
        raise DataError(f"{images} is not sorted by class and {annotations} is missing: "
                        "their labels are unknown; extract the archive again")
    by_class = images if any(entry.is_dir() for entry in entries) else folder
    return _scan(by_class, classes, ignore=("images",))


def _annotated(images: Path, annotations: Path, classes: list[str]) -> Part:
    number = {wnid: i for i, wnid in enumerate(classes)}
    lines = read_small(annotations, LIST).decode().splitlines()
    rows = [line.split() for line in lines if line.strip()]
    wrong = next((row for row in rows if len(row) < 2 or row[1] not in number), None)
    if wrong:
        raise DataError(f"{annotations} has a line of no known class ({' '.join(wrong)}): "
                        "extract the archive again")
    listed, present = {row[0] for row in rows}, {entry.name for entry in images.iterdir()}
    if absent := listed - present:
        raise DataError(f"{images} lacks {len(absent)} images of {annotations} ({min(absent)}): "
                        "extract the archive again")
    if unlisted := set(filter(is_image, present - listed)):
        raise DataError(f"{annotations} does not name {len(unlisted)} images of {images} "
                        f"({min(unlisted)}): extract the archive again")
    return file_part(images, [(images / row[0], number[row[1]]) for row in rows], classes)
