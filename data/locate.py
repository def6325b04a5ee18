"""Find a dataset on the disk, or fetch it; a failure says what was expected, from where."""

import http.client
import os
import shutil
import socket
import tarfile
import zipfile
from pathlib import Path

from data.specs import Spec
from utils.errors import DataError

DEFAULT_FOLDERS = ("dataset", "datasets")
TIMEOUT = 60.0  # seconds without a byte before a download gives up
FETCH_ERRORS = (OSError, RuntimeError, ValueError, EOFError, http.client.HTTPException,
                tarfile.TarError, zipfile.BadZipFile)  # fmt: skip


def candidates(name: str, data: str | None) -> list[Path]:
    """Folders where the dataset may be: D/<name>, then D."""
    folders = DEFAULT_FOLDERS if data is None else (os.path.expanduser(data),)
    return [place for folder in map(Path, folders) for place in (folder / name, folder)]


def missing(spec: Spec, root: Path) -> list[str]:
    """The markers of the dataset that are not in `root`."""
    return [m for m in spec.markers if not any((root / one).exists() for one in m.split("|"))]


def present(spec: Spec, root: Path) -> list[str]:
    """The markers of the dataset that are in `root`, as they are called there."""
    return [one for m in spec.markers for one in m.split("|") if (root / one).exists()]


def locate(name: str, spec: Spec, data: str | None, download: bool) -> Path:
    """The root folder of a dataset, fetched if need be and allowed. Raises DataError."""
    places = candidates(name, data)
    for place in places:
        if not missing(spec, place):
            return place
    target = next((p for p in places[::2] if p.parent.is_dir()), places[0])
    partly = next((p for p in places if len(missing(spec, p)) < len(spec.markers)), None)
    partly = partly or (target if _begun(spec, target) else None)
    if partly:
        raise DataError(f"{name} in {partly.absolute()} is incomplete: no {_shown(spec, partly)}; "
                        f"complete it or move it away; {_advice(spec)}")
    absent = f" ({data} does not exist)" if data and not Path(data).exists() else ""
    wanted = f"{name} not found{absent}: expected {_shown(spec, target)} in {target.absolute()}"
    if spec.fetch is None or not download:
        raise DataError(f"{wanted}; {_advice(spec)}")
    try:
        fetch_into(spec, target)
    except FETCH_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{wanted}, and the download failed ({reason}); {_advice(spec)}") from error
    return target


def _begun(spec: Spec, root: Path) -> bool:
    """Whether a folder that the download would make is there already, with something in it."""
    tops = {Path(one).parts[0] for marker in spec.markers for one in marker.split("|")}
    return any((root / top).is_dir() and any((root / top).iterdir()) for top in tops)


def _shown(spec: Spec, root: Path) -> str:
    return " and ".join(m.replace("|", " or ") for m in missing(spec, root))


def _advice(spec: Spec) -> str:
    return f"get it from {spec.source} ({spec.size}), or name its folder with --data"


def fetch_into(spec: Spec, target: Path) -> None:
    """Download beside `target`, then move into it what came, so that it is whole or absent."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    created = [folder for folder in aside.parents if not folder.exists()]
    try:
        aside.mkdir(parents=True)
        _fetch_inside(spec, aside)
        if missing(spec, target):
            target.mkdir(exist_ok=True)
            for entry in aside.iterdir():
                os.replace(entry, target / entry.name)
    finally:
        socket.setdefaulttimeout(patience)
        shutil.rmtree(aside, ignore_errors=True)
        for folder in created:
            _remove_empty(folder)


def _fetch_inside(spec: Spec, folder: Path) -> None:
    """Download into `folder`; tar refuses members that lead outside, zipfile keeps them inside."""
    if not hasattr(tarfile, "data_filter"):
        raise OSError("Python before 3.10.12 and 3.11.4 unpacks archives unsafely: update it")
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        spec.fetch(folder)
    finally:
        tarfile.TarFile.extraction_filter = before


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
