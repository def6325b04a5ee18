"""The authors' nine published checkpoints, and files from paths, URLs and Google Drive."""

import codecs
import difflib
import hashlib
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlparse
from urllib.request import Request, url2pathname, urlopen

from models.hub import from_hub
from utils.checkpoint import write_side_car
from utils.downloads import fetched, own_cache
from utils.errors import VPNsError
from utils.files import below, sha256_file
from utils.tensors import SUFFIXES, first_line, read_tensors
from utils.torch_look import ZIP_START

TIMEOUT = 60  # seconds without a byte
AGAIN = ": get it again"  # how the reader ends what it says of a damaged file
DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")


class Published(NamedTuple):
    """A checkpoint of the authors, a ResNet-18; `drive` is its id on Google Drive.

    `accuracy` is the paper's mean over its seeds, percent.
    """

    dataset: str
    density: float
    drive: str
    accuracy: float


ZOO: dict[str, Published] = {
    f"resnet18_{dataset}_s{sparsity}": Published(
        dataset, round(1 - sparsity / 100, 2), drive, accuracy)
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


def listed() -> Iterator[str]:
    """A line on each published checkpoint; size and hash of what was fetched."""
    yield "name  network  dataset  sparsity  accuracy in the paper  size and SHA-256"
    for name, row in ZOO.items():
        path, known = own_cache() / f"{name}.pth", "not fetched yet"
        if path.is_file():
            known = f"{path.stat().st_size:,} bytes {sha256_file(path)}"
        sparsity = f"{100 * (1 - row.density):g} %"
        yield f"{name}  resnet18  {row.dataset}  {sparsity}  {row.accuracy:.2f}  {known}"


def fetch(source: str) -> Path:
    """The local file that `source` stands for, downloaded into the cache if need be.

    `source` is a path, a file://, http:// or https:// URL, a Google Drive link or a name in ZOO.
    A file in the cache is used again. A download appears under its name only when it is whole:
    of the announced length and read through by `read_tensors` without a fault. Raises VPNsError
    when the file cannot be had, with what to do by hand, or is refused.
    """
    drive = ZOO[source].drive if source in ZOO else _drive_id(source)
    if drive:
        name = next((n for n, row in ZOO.items() if row.drive == drive), f"drive-{drive}")
        link = f"https://drive.google.com/file/d/{drive}/view"
        return _cached(f"{name}.pth", link, partial(_from_drive, drive))
    address = urlparse(source if "://" in source else "")
    if address.scheme in ("http", "https"):
        if Path(address.path).suffix not in SUFFIXES:
            ends = f"no address of weights, which would end in {', '.join(SUFFIXES)}"
            raise VPNsError(f"{source} is {ends}: download it yourself and give its path")
        end = re.sub(r"[^\w.-]", "_", address.path.rpartition("/")[2])[-80:]
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]  # keeps equal ends apart
        return _cached(f"{digest}-{end}", source, partial(_from_web, source))
    if address.scheme == "hf":
        return from_hub(source)
    if address.scheme not in ("", "file"):
        raise VPNsError(f"{source}: only file://, http://, https:// and hf:// can be fetched")
    path = Path(url2pathname(address.path) if address.scheme else source)
    if not path.is_file():
        near = difflib.get_close_matches(source, ZOO, n=1)
        near = near or sorted(str(p) for p in below(path) if p.name == "model.safetensors")
        raise VPNsError(f"{path} is not a file" + (f"; did you mean {near[0]}?" if near else ""))
    return path


def _cached(name: str, link: str, download: Callable[[Path], None]) -> Path:
    """The file of that name in the cache; `download(aside)` writes it if it is not there."""
    path = own_cache() / name
    if path.is_file():
        if fault := _fault(path):
            way = "delete it (and its .sha256, if any), and it is fetched again from"
            raise VPNsError(f"{fault.removesuffix(AGAIN)}: {way} {link}")
        return path
    try:
        print(f"downloading {link} to {path}", file=sys.stderr)
        with fetched(path.parent, lambda folder: download(folder / name)) as folder:
            aside = folder / name
            fault = _fault(aside)
            if fault is None:
                write_side_car(path, sha256_file(aside))  # first, so that later damage is noticed
                os.replace(aside, path)
            elif fault.endswith(AGAIN):
                text = fault.removesuffix(AGAIN).replace(str(aside), "what came")
                raise VPNsError(_known_fault(aside) or text)
    except (VPNsError, OSError, HTTPException, ValueError) as error:
        reason = error if isinstance(error, VPNsError) else first_line(error)
        by_hand = f"download it yourself, save it as {path} and run again"
        raise VPNsError(f"cannot fetch {link} ({reason}): {by_hand}") from error
    if fault:  # a whole file that the program refuses: another try is of no use
        raise VPNsError(f"{fault.replace(str(aside), str(path))}; nothing is kept of {link}")
    return path


def _fault(path: Path) -> str | None:
    """Why the program does not read a file; only this notices a missing part of any format."""
    try:
        read_tensors(path, known=True)
    except VPNsError as error:
        return str(error)
    return None


def _known_fault(path: Path) -> str | None:
    """The fault that the first bytes show, such as a web page; None where they show none."""
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
    request = Request(url, headers={"User-Agent": "vpns"})
    with urlopen(request, timeout=TIMEOUT) as reply, open(aside, "wb") as file:
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
    url = f"https://drive.google.com/uc?id={drive}"
    try:
        with redirect_stdout(sys.stderr):
            gdown.download(url=url, output=str(aside), quiet=not sys.stderr.isatty())
    except Exception as error:  # gdown and requests have their own
        raise VPNsError(first_line(error)) from error
    if not aside.is_file():
        raise VPNsError("Google Drive refused it, often for too many downloads in a day")
