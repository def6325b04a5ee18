"""Archives of datasets: refused before anything is written when a member leads outside."""

import functools
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from utils.files import leads_outside


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, `extractall` of tar and zip files raises ValueError before it writes outside.

    torchvision's downloads unpack with the defaults of the Python at hand, which before 3.14 let
    a tar file write anywhere.
    """
    kinds = ((tarfile.TarFile, _tar_paths), (zipfile.ZipFile, zipfile.ZipFile.namelist))
    originals = [kind.extractall for kind, _ in kinds]
    for kind, paths in kinds:
        kind.extractall = _checked(kind.extractall, paths)
    try:
        yield
    finally:
        for (kind, _), original in zip(kinds, originals, strict=True):
            kind.extractall = original


def _checked(extract: Callable, paths: Callable[[Any], Iterable[str]]) -> Callable:
    @functools.wraps(extract)
    def extractall(archive: Any, *args: Any, **options: Any) -> None:
        outside = next(filter(leads_outside, paths(archive)), None)
        if outside is not None:
            raise ValueError(f"the archive is refused, {outside!r} in it leads outside its folder")
        extract(archive, *args, **options)

    return extractall


def _tar_paths(archive: tarfile.TarFile) -> Iterator[str]:
    """Members and what links among them point to; a device counts as a path in /dev."""
    for member in archive.getmembers():
        yield member.name
        if member.issym() or member.islnk():
            yield member.linkname
        elif not (member.isfile() or member.isdir()):
            yield f"/dev/{member.name}"
