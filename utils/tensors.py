"""Reading files of tensors that somebody else may have written: nothing in them is ever run."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import VPNsError
from utils.files import is_amount, leads_outside, sha256_file
from utils.signals import signals_later
from utils.torch_file import inspect, refusal

SUFFIXES = (".safetensors", ".pt", ".pth")


def read_tensors(path: Path | str, known: bool = False) -> dict[str, Any]:
    """The dict in a .safetensors, .pt or .pth file, on the CPU.

    A safetensors file gives name -> tensor; a torch file what its writer put in, which may be
    nested, but only tensors, numbers, strings and containers. A checksum in `<file>.sha256`
    beside it is compared; without one the sums inside a zip are, and a line says what that is
    worth, unless the caller has compared the file already (`known`). Raises VPNsError for a file
    that is missing, damaged, of another kind, that declares more than it holds, or that asks for
    code to be run.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise VPNsError(f"{path} is not a file of weights: its name must end in {_or(SUFFIXES)}")
    if not path.is_file():
        raise VPNsError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        with signals_later():
            known = check_side_car(path) or known
            found, summed = _read(path)
    except OSError as error:
        raise VPNsError(f"{path} cannot be read ({error.strerror or first_line(error)})") from error
    if not isinstance(found, dict):
        raise VPNsError(f"{path} holds a {type(found).__name__}, not a dict of tensors")
    _check_tensors(path, found)
    if not known:
        print(f"note: {path} has no {path.name}.sha256 beside it: {_worth(path, summed)}")
    return found


def _read(path: Path) -> tuple[Any, bool]:
    """What a file holds, and whether sums inside it were compared."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path), False
    summed = inspect(path)
    return _read_torch(path), summed


def _worth(path: Path, summed: bool) -> str:
    """What is known of a file without a side-car."""
    if summed:
        return "only the CRC-32 sums inside it were compared"
    kind = "safetensors" if path.suffix == ".safetensors" else "the old format of torch.save"
    return f"{kind} has no checksum, so a changed bit would not be noticed"


def _check_tensors(path: Path, found: Any) -> None:
    """Refuse tensors that are no plain numbers in memory or larger than the file they are from.

    Containers may hold themselves, hence no recursion.
    """
    size, left, seen = path.stat().st_size, [found], set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            problem = _problem(value, size)
            if problem:
                raise VPNsError(f"{path} is refused: it {problem}")
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)


def _problem(tensor: Tensor, size: int) -> str | None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return f"holds a tensor of another kind ({tensor.layout}, {tensor.device})"
    if tensor.numel() * tensor.element_size() > size:
        return f"declares a tensor of shape {tuple(tensor.shape)} in {size:,} bytes"
    return None


@contextmanager
def understood(path: Path | str) -> Iterator[None]:
    """Name the file when its values are not what they should be; for the part that reads them.

    Values of the right kind that do not fit raise VPNsError themselves.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        reason = f"{type(e).__name__}: {first_line(e)[:200]}"
        raise VPNsError(f"{path} does not hold what it should ({reason})") from e


def require_like(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises ValueError when `found` lacks one of these tensors, or its shape or type is another.

    For within `understood`.
    """
    wrong = [n for n in own if n not in found or not _alike(own[n], found[n])]
    if wrong:
        raise ValueError(f"it is of another network or stage: {', '.join(wrong[:3])}")


def _alike(own: Tensor, found: Tensor) -> bool:
    return found.shape == own.shape and found.dtype == own.dtype


def require_amounts(found: Mapping[str, Any], *names: str) -> None:
    """Raises ValueError when one of these values is no finite number from 0 on."""
    wrong = [name for name in names if not is_amount(found[name])]
    if wrong:
        raise ValueError(f"no number under {', '.join(wrong)}")


def check_side_car(path: Path) -> bool:
    """Compare a file with the digest in `<file>.sha256`, if there is one (`sha256sum` format).

    Returns whether there is one. Raises VPNsError when they differ.
    """
    side_car = path.with_name(path.name + ".sha256")
    if not side_car.is_file():
        return False
    words = side_car.read_text(errors="replace").split()
    if not words or words[0].lower() != sha256_file(path):
        raise VPNsError(f"checksum mismatch: {path} is not the file that {side_car.name} describes")
    return True


def first_line(error: BaseException) -> str:
    """The first sentence of an error's text, or its kind when it has none."""
    text = str(error).strip()
    return text.splitlines()[0].split(". ")[0] if text else type(error).__name__


def _or(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
        outside = [name for name in names if leads_outside(name)]
        if outside:
            raise VPNsError(f"{path} is refused: it holds {outside[0]!r}, a name that is a path")
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
        raise _torch_problem(path, error) from error


def _torch_problem(path: Path, error: Exception) -> VPNsError:
    """torch's reason without its advice, which is to load the file unsafely."""
    refused = re.search(r"GLOBAL (\S+\w)", str(error))
    if refused:
        return refusal(path, refused.group(1))
    if "weights_only" in str(error):
        return VPNsError(f"{path} is not a whole file of torch.save: get it again")
    return VPNsError(f"{path} is damaged ({first_line(error)}): get it again")
