"""The authors' nine published checkpoints, and files from paths, URLs and Google Drive."""

import codecs
import difflib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.parse import parse_qs, urlparse

from utils.errors import VPNsError
from utils.files import atomic_write, sha256_file
from utils.tensors import SUFFIXES, first_line, read_tensors
from utils.torch_file import ZIP_START

TIMEOUT = 60  # seconds without a byte
AGAIN = ": get it again"  # how the reader ends what it says of a damaged file
DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")


@dataclass(frozen=True)
class Published:
    """A checkpoint of the authors: the accuracy in percent is the paper's, a mean of 3 seeds."""

    network: str
    dataset: str
    density: float
    drive: str
    accuracy: float


ZOO: dict[str, Published] = {
    f"resnet18_{dataset}_s{sparsity}": Published(
        "resnet18", dataset, round(1 - sparsity / 100, 2), drive, accuracy
    )
    for dataset, sparsity, drive, accuracy in (
        ("cifar10", 40, "1iONKgIyJf5XIqMIQDnreQgyzDfa4KyFh", 96.56),
        ("cifar10", 60, "1BFlW8VpStW0efzLI32hUZD16wl4cGIkP", 96.51),
        ("cifar10", 70, "1ZQlr-6_O2ehmPen1Uxold1Yb2hN-GfNM", 96.51),
        ("cifar100", 40, "1f8TTDDjChVSFIvre-V1wb5Y_PkIMr6cN", 83.31),
        ("cifar100", 60, "1ilrPZiN-We6ryWMlekJosBOH8H8-l9UT", 83.16),
        ("cifar100", 70, "13XcvYwiy2t1Rn2Qx6uB1iqvgwbUzvhNV", 82.74),
        ("tiny_imagenet", 40, "1FmVS7GuWHahcCh5zoEZT5CWdKZnwUG1v", 73.53),
        ("tiny_imagenet", 60, "1vnXqzzoUwjhPuIOQCiF_YvcSlGTSHdnn", 72.83),
        ("tiny_imagenet", 70, "1WBu_-NSPs1Dhkmk0c_0r9MXTiU8-5N9X", 71.98),
    )
}


class _Refused(VPNsError):
    """A download that came whole and is not read by the program: another try is of no use."""


def cache_folder() -> Path:
    """The folder of downloads: `$VPNS_CACHE`, or `~/.cache/vpns`."""
    return Path(os.environ.get("VPNS_CACHE") or "~/.cache/vpns").expanduser()


def fetch(source: str, sha256: str | None = None) -> Path:
    """The local file that `source` stands for, downloaded into the cache if need be.

    `source` is a path, a file://, http:// or https:// URL, a Google Drive link or a name in ZOO.
    A file in the cache is used again. A download appears under its name only when it is whole:
    of the announced length, read through by `read_tensors` without a fault, and of the SHA-256
    given. Raises VPNsError when the file cannot be had, with what to do by hand, or is refused.
    """
    sha256 = sha256 and sha256.lower()
    drive = ZOO[source].drive if source in ZOO else _drive_id(source)
    if drive:
        name = next((n for n, row in ZOO.items() if row.drive == drive), f"drive-{drive}")
        link = f"https://drive.google.com/file/d/{drive}/view"
        return _cached(f"{name}.pth", link, partial(_from_drive, drive), sha256)
    address = urlparse(source if "://" in source else "")
    if address.scheme in ("http", "https"):
        if Path(address.path).suffix not in SUFFIXES:
            ends = f"no address of weights, which would end in {', '.join(SUFFIXES)}"
            raise VPNsError(f"{source} is {ends}: download it yourself and give its path")
        end = re.sub(r"[^\w.-]", "_", address.path.rpartition("/")[2])[-80:]
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]  # keeps equal ends apart
        return _cached(f"{digest}-{end}", source, partial(_from_web, source), sha256)
    if address.scheme not in ("", "file"):
        raise VPNsError(f"{source}: only file://, http:// and https:// can be fetched")
    path = urllib.request.url2pathname(address.path) if address.scheme else source
    return _local(source, Path(path).expanduser(), sha256)


def _local(source: str, path: Path, sha256: str | None) -> Path:
    """A file that is here already; it stays where it is."""
    if not path.is_file():
        near = difflib.get_close_matches(source, ZOO, n=1)
        near = near or sorted(map(str, path.rglob("model.safetensors")))
        raise VPNsError(f"{path} is not a file" + (f"; did you mean {near[0]}?" if near else ""))
    _check_digest(path, sha256)
    return path


def _cached(name: str, link: str, download: Callable[[Path], None], sha256: str | None) -> Path:
    """The file of that name in the cache; `download(aside)` writes it if it is not there."""
    path = cache_folder() / name
    if path.is_file() and (sha256 is None or sha256_file(path) == sha256):
        _check_cached(path, link)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
            aside = Path(folder) / name
            print(f"downloading {link} to {path}", file=sys.stderr)
            download(aside)
            _check_download(aside, path, link)
            _check_digest(aside, sha256)
            # its digest first, so that later damage is noticed
            side_car = path.with_name(f"{name}.sha256")
            atomic_write(side_car, f"{sha256_file(aside)}  {name}\n")
            os.replace(aside, path)
    except _Refused:
        raise
    except (VPNsError, OSError, HTTPException, ValueError) as error:
        reason = error if isinstance(error, VPNsError) else first_line(error)
        by_hand = f"download it yourself, save it as {path} and run again"
        raise VPNsError(f"cannot fetch {link} ({reason}): {by_hand}") from error
    return path


def _check_digest(path: Path, sha256: str | None) -> None:
    if sha256 is not None and sha256 != (digest := sha256_file(path)):
        raise VPNsError(f"checksum mismatch: {path.name} has SHA-256 {digest}, not {sha256}")


def _check_cached(path: Path, link: str) -> None:
    """Say of a file in the cache that does not read how to be rid of it."""
    try:
        read_tensors(path, known=True)
    except VPNsError as error:
        problem, way = str(error).removesuffix(AGAIN), "delete it (and its .sha256, if any)"
        raise VPNsError(f"{problem}: {way}, and it is fetched again from {link}") from error


def _check_download(aside: Path, path: Path, link: str) -> None:
    """Refuse what the program would not read from `path` later; nothing in it is run.

    Reading is the only test that notices a part of any format. It costs a fraction of a second
    and the memory that the file will need anyway.
    """
    try:
        read_tensors(aside, known=True)
    except VPNsError as error:
        text = str(error)
        if text.endswith(AGAIN):
            text = text.removesuffix(AGAIN).replace(str(aside), "what came")
            raise VPNsError(_known_fault(aside) or text) from error
        problem = text.replace(str(aside), str(path))
        raise _Refused(f"{problem}; nothing is kept of {link}") from error


def _known_fault(path: Path) -> str | None:
    """The fault that the first bytes show: another thing or a part; None where they show none."""
    with open(path, "rb") as file:
        start = file.read(512).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start:
        return "it came empty"
    if start.startswith(ZIP_START):
        return None if zipfile.is_zipfile(path) else "cut off: a zip file without its end came"
    if re.search(rb"[\0-\x08\x0e-\x1f]", start):  # no text has them
        return None
    if start.startswith(b"<"):
        return "a web page came in its place: a sign-in, a quota or a wrong link"
    return f"a text came in its place: {start[:80].decode(errors='replace')!r}"


def _drive_id(source: str) -> str | None:
    """The file's id in a Google Drive link; None for anything else."""
    link = urlparse(source)
    if link.scheme not in ("http", "https") or link.hostname not in DRIVE_HOSTS:
        return None
    in_path = re.search(r"/d/([\w-]+)", link.path)
    drive = in_path.group(1) if in_path else parse_qs(link.query).get("id", [""])[0]
    if not re.fullmatch(r"[\w-]+", drive):
        raise VPNsError(f"{source} is not the link of one file on Google Drive")
    return drive


def _from_web(url: str, aside: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "vpns"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as reply, open(aside, "wb") as file:
        shutil.copyfileobj(reply, file)
        announced, size = reply.headers.get("Content-Length"), file.tell()
    if announced is not None and int(announced) != size:
        raise VPNsError(f"cut off: {size} of {announced} bytes came")


def _from_drive(drive: str, aside: Path) -> None:
    """Download with gdown, which knows the pages that Google puts before large files."""
    try:
        import gdown
    except ImportError as error:
        raise VPNsError("Google Drive needs gdown: pip install gdown") from error
    try:
        with redirect_stdout(sys.stderr):
            url = f"https://drive.google.com/uc?id={drive}"
            came = gdown.download(url=url, output=str(aside), quiet=not sys.stderr.isatty())
    except Exception as error:  # gdown and requests have their own
        raise VPNsError(first_line(error)) from error
    if came is None or not aside.is_file():
        raise VPNsError("Google Drive refused it, often for too many downloads in a day")
