"""Reading files of tensors that somebody else may have written: nothing in them is ever run."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Size, Tensor, dtype, nn

from utils.errors import VPNsError, beyond_limit, note
from utils.files import leads_outside, read_small, sha256_file, side_car
from utils.memory import usable_memory
from utils.packed import unpack
from utils.signals import signals_later
from utils.torch_file import read_torch

SUMS = 4096  # bytes of a side-car
HEADER, MARKS = 2**25, 2**21  # of safetensors: bytes, and quotes, commas and brackets in them
DAMAGED = (SafetensorError, OverflowError, TypeError, ValueError, LookupError, RuntimeError)
SUFFIXES = (".safetensors", ".pt", ".pth")


def read_tensors(path: Path, known: bool = False) -> dict[str, Any]:
    """The dict in a file of safetensors or of torch.save, whatever its name, on the CPU.

    A safetensors file gives name -> tensor; a torch file what its writer put in, which may be
    nested, but only tensors, numbers, strings and containers. A checksum in `<file>.sha256`
    beside it is compared; without one the sums inside a zip are, and a line says so, unless the
    caller has compared the file already (`known`). Raises VPNsError for a file that is missing,
    damaged, of another kind, that declares more than it holds, or that asks for code to be run.
    """
    if not path.is_file():
        raise VPNsError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if path.stat().st_size > usable_memory() // 2:
        raise VPNsError(f"{path} is larger than half of the memory: no file of weights")
    try:
        with signals_later():
            compared = _check_side_car(path)
            content, worth = _read(path, compared)
    except OSError as error:
        raise VPNsError(f"{path} cannot be read ({error.strerror or first_line(error)})") from error
    if not isinstance(content, dict):
        raise VPNsError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    if not (compared or known):
        note(f"{path} has no {path.name}.sha256 beside it: {worth}")
    return content


def is_safetensors(path: Path) -> bool:
    """Whether a file is one of safetensors and not of torch.save, by its first bytes.

    Raises VPNsError when it is neither.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return True
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80" or path.suffix in SUFFIXES:
        return path.suffix == ".safetensors" and start[:1] != b"P"
    raise VPNsError(f"{path} is no file of weights: neither of safetensors nor of torch.save")


def _read(path: Path, compared: bool) -> tuple[Any, str]:
    """The content of a file, and the worth of the checksums inside it, which are compared unless
    the whole file was (`compared`)."""
    blind = "has no checksum, so a changed bit would not be noticed"
    if is_safetensors(path):
        return _read_safetensors(path), f"safetensors {blind}"
    content, has_sums = read_torch(path, sums=not compared)
    inside = "only the CRC-32 sums inside it were compared"
    return content, inside if has_sums else f"the old format of torch.save {blind}"


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


def require_like(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError when `tensors` lacks one of these, or its shape or type is another.

    For within `understood`.
    """

    def form(tensor: Tensor) -> tuple[Size, dtype]:
        return tensor.shape, tensor.dtype

    wrong = [n for n in expected if n not in tensors or form(tensors[n]) != form(expected[n])]
    if wrong:
        raise ValueError(f"it is of another network or stage: {', '.join(wrong[:3])}")


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """`load_state_dict` of tensors that say no versions of their layers: they are the module's own.

    torchvision's MNASNet refuses a state dict without.
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(tensors, "_metadata", module.state_dict()._metadata)
    module.load_state_dict(state, strict)


def _check_side_car(path: Path) -> bool:
    """Compare a file with the digest in `<file>.sha256` (`sha256sum` format), if there is one.

    Returns whether there is one.
    """
    sums = side_car(path)
    if not sums.is_file():
        return False
    try:
        words = read_small(sums, SUMS).decode(errors="replace").split()
    except OSError as error:
        raise VPNsError(f"{sums} is no checksum ({error.strerror}): remove it") from error
    if not words or words[0].lower() != sha256_file(path):
        raise VPNsError(f"checksum mismatch: {path} is not the file that {sums.name} describes")
    return True


def first_line(error: BaseException) -> str:
    """The first sentence of an error's text, or its kind when it has none."""
    text = str(error).strip()
    return text.splitlines()[0].split(". ")[0] if text else type(error).__name__


def _check_header(path: Path) -> None:
    """Raises VPNsError for a header that no network has; understanding it would take gigabytes."""
    most = max(HEADER, path.stat().st_size // 8)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = file.read(min(length, most + 1))
    if len(head) > most or sum(map(head.count, (b'"', b",", b"[", b"{"))) > MARKS:
        raise VPNsError(f"{path} is refused: it has a larger header than a network needs")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _check_header(path)
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
        outside = [name for name in names if leads_outside(name)]
        if outside:
            raise VPNsError(f"{path} is refused: it holds {outside[0]!r}, a name that is a path")
        return unpack(load_file(path))
    except DAMAGED as error:
        advice = beyond_limit(error)
        what = f"cannot be read ({first_line(error)}): {advice}"
        if not advice:
            what = f"is damaged ({first_line(error)}): get it again"
        raise VPNsError(f"{path} {what}") from error
