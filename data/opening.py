"""A dataset by its name: found on the disk or fetched, opened, and checked."""

import http.client
import os
import socket
import zipfile
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError

from data.archives import guarded
from data.images import Splits
from data.layouts import find_layout, folders_in
from data.picture import UNREADABLE
from data.specs import SPECS, Spec
from utils.downloads import fetched
from utils.errors import DataError, message_of

TEST_FRACTION = 0.2
PARTS = ("training", "test")  # as messages call them
DEFAULT_FOLDERS = ("dataset", "datasets")
TIMEOUT = 60.0  # seconds without a byte before a download gives up
MOST_SECONDS = 24 * 3600  # of a download as a whole
DAMAGED = (*UNREADABLE, RuntimeError, UnpicklingError)
FETCH_ERRORS = (OSError, RuntimeError, ValueError, EOFError, http.client.HTTPException,
                zipfile.BadZipFile)  # fmt: skip


def open_splits(
    name: str, folder: str | None, download: bool, test_fraction: float = TEST_FRACTION
) -> Splits:
    """The training and test part of a dataset: none empty, every label a class, else DataError."""
    spec, root = SPECS[name], locate(name, folder, download)
    what = f"{name} in {root.absolute()}"
    try:
        splits = spec.open(root) if spec.classes else spec.open(root, test_fraction)
    except DAMAGED as error:
        raise DataError(f"{what} is damaged ({message_of(error)}): remove it there and get it "
                        f"again from {spec.source}") from error
    require_images(splits, what)
    for part, (_, labels, classes) in zip(PARTS, splits, strict=True):
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise DataError(f"{what} has {part} labels outside its {len(classes)} classes: "
                            f"get it again from {spec.source}")
    return splits


def require_images(splits: Splits, source: str) -> None:
    """Raises DataError when a part is empty."""
    for part, images in zip(PARTS, splits, strict=True):
        if not len(images.labels):
            raise DataError(f"{source} has no {part} images")


def locate(name: str, data: str | None, download: bool) -> Path:
    """The root folder of a dataset, fetched if need be and allowed. Raises DataError."""
    spec = SPECS[name]
    folders = DEFAULT_FOLDERS if data is None else (data,)
    places = [place for folder in map(Path, folders) for place in (folder / name, folder)]
    own = spec.classes is None and data is not None
    for place in places:
        if (own and find_layout(place)) or not _missing(spec, place):
            return place
    if own and places[-1].is_dir() and (there := folders_in(places[-1])):
        raise DataError(f"{places[-1].absolute()} holds no class folders with images "
                        f"({', '.join(there[:5])}): sort them into train/<class>/ and "
                        "test/<class>/, or <class>/ alone")
    target = next((p for p in places[::2] if p.parent.is_dir()), places[0])
    partly = [p for p in places if present(spec, p)] + [target] * _begun(spec, target)
    advice = f"get it from {spec.source} ({spec.size}), or name its folder with --data"
    if partly:
        raise DataError(f"{name} in {partly[0].absolute()} is incomplete: no "
                        f"{_wanted(spec, partly[0])}; complete it or move it away; {advice}")
    absent = f" ({data} does not exist)" if data and not Path(data).exists() else ""
    failure = f"{name} not found{absent}: expected {_wanted(spec, target)} in {target.absolute()}"
    if spec.fetch is None or not download:
        raise DataError(f"{failure}; {advice}")
    try:
        _fetch_into(spec, target)
    except FETCH_ERRORS as error:
        reason = f"{failure}, and the download failed ({message_of(error)}); {advice}"
        raise DataError(reason) from error
    return target


def present(spec: Spec, root: Path) -> list[str]:
    """The markers of the dataset that are in `root`, as they are called there."""
    return [one for m in spec.markers for one in m.split("|") if (root / one).exists()]


def _missing(spec: Spec, root: Path) -> list[str]:
    return [m for m in spec.markers if not any((root / one).exists() for one in m.split("|"))]


def _wanted(spec: Spec, root: Path) -> str:
    return " and ".join(m.replace("|", " or ") for m in _missing(spec, root))


def _begun(spec: Spec, root: Path) -> bool:
    """Whether a folder that the download would make is there already, with something in it."""
    tops = [root / Path(one).parts[0] for marker in spec.markers for one in marker.split("|")]
    return any(top.is_dir() and any(top.iterdir()) for top in tops)


def _fetch_into(spec: Spec, target: Path) -> None:
    """Download beside `target`, then move it into place, so that it is whole or absent."""
    created = [folder for folder in target.parents if not folder.exists()]
    patience, most = socket.getdefaulttimeout(), 4 * spec.bytes  # packed, unpacked, and more
    try:
        socket.setdefaulttimeout(TIMEOUT)
        with guarded(), fetched(target.parent, spec.fetch, most, MOST_SECONDS) as aside:
            if _missing(spec, target):
                target.mkdir(exist_ok=True)
                for entry in aside.iterdir():
                    os.replace(entry, target / entry.name)
    finally:
        socket.setdefaulttimeout(patience)
        for folder in created:
            with suppress(OSError):  # it is not empty, or not there
                folder.rmdir()
