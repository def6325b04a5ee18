"""Reading files of tensors that somebody else may have written: nothing in them is ever run."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch

from utils.errors import VPNsError
from utils.files import sha256_file

SUFFIXES = (".safetensors", ".pt", ".pth")


def read_tensors(path: Path | str) -> dict[str, Any]:
    """The dict in a .safetensors, .pt or .pth file, on the CPU.

    A safetensors file gives name -> tensor; a torch file what its writer put in, which may be
    nested, but only tensors, numbers, strings and containers. A checksum in `<file>.sha256`
    beside it is compared. Raises VPNsError for a file that is missing, damaged, of another
    kind, or that asks for code to be run.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise VPNsError(f"{path} is not a file of weights: its name must end in {_or(SUFFIXES)}")
    if not path.is_file():
        raise VPNsError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        check_side_car(path)
        found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except OSError as error:
        raise VPNsError(f"{path} cannot be read ({error.strerror or first_line(error)})") from error
    if not isinstance(found, dict):
        raise VPNsError(f"{path} holds a {type(found).__name__}, not a dict of tensors")
    return found


def check_side_car(path: Path) -> None:
    """Compare a file with the digest in `<file>.sha256`, if there is one (`sha256sum` format).

    Raises VPNsError when they differ.
    """
    side_car = path.with_name(path.name + ".sha256")
    if not side_car.is_file():
        return
    words = side_car.read_text(errors="replace").split()
    if not words or words[0].lower() != sha256_file(path):
        raise VPNsError(f"checksum mismatch: {path} is not the file that {side_car.name} describes")


def first_line(error: BaseException) -> str:
    """The first sentence of an error's text, or its kind when it has none."""
    text = str(error).strip()
    return text.splitlines()[0].split(". ")[0] if text else type(error).__name__


def _or(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1]


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise VPNsError(f"{path} is damaged ({first_line(error)}): get it again") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols, with advice for torch developers
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise VPNsError(f"{path} {_torch_problem(error)}") from error


def _torch_problem(error: Exception) -> str:
    """torch's reason without its advice, which is to load the file unsafely."""
    refused = re.search(r"GLOBAL (\S+\w)", str(error))
    if refused:
        called = refused.group(1)
        return f"is refused: reading it would call {called}, and only tensors and plain values load"
    if "weights_only" in str(error):
        return "is not a whole file of torch.save: get it again"
    return f"is damaged ({first_line(error)}): get it again"
