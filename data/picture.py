"""One image file: decoded to RGB, or examined without keeping its pixels."""

import errno
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.errors import DataError

# PIL warns of odd metadata, which is no fault of the pixels, and of damage, which is an error here.
warnings.filterwarnings("ignore", module=r"PIL\.")

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    NotImplementedError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
ADVICE = "get it again, or leave such images out with --bad_images skip (--check_data lists them)"
MODES = {
    "1": "black and white",
    "L": "greyscale",
    "LA": "greyscale with transparency, which is dropped",
    "P": "palette, replaced by its colours",
    "PA": "palette with transparency, which is dropped",
    "RGBA": "transparency, which is dropped",
    "RGBX": "a fourth channel, which is dropped",
    "CMYK": "CMYK, converted without a colour profile",
}


def decode(path: Path) -> Tensor:
    """An image file as uint8 RGB (3, H, W), whatever its mode.

    Raises DataError that names the file when it is missing, truncated or no image.
    """
    try:
        with opened(path) as image:
            pixels = rgb(image)
    except UNREADABLE as error:
        raise refusal(path, error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def size_of(path: Path) -> int:
    """Bytes of a regular file, which is not opened. Raises OSError when it is missing or none."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no regular file")
    return found.st_size


def opened(path: Path) -> Image.Image:
    """An image file whose pixels are not loaded yet. Raises one of UNREADABLE."""
    size_of(path)  # opening a pipe would wait for somebody who writes into it
    return Image.open(path)


def rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an open image as uint8 (H, W, 3). Raises one of UNREADABLE."""
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if image.mode.startswith("I"):  # 16 bits a pixel: PIL would clip them to 8
        image = Image.fromarray(_upper_bits(np.asarray(image)))
    return np.array(image.convert("RGB"))


def _upper_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError("more than 16 bits a pixel")
    return (pixels >> 8).astype(np.uint8)


def refusal(path: Path, error: Exception) -> DataError:
    """The error that an image file which cannot be read is to the user."""
    return DataError(f"cannot read the image {path} ({reason(path, error)}): {ADVICE}")


def reason(path: Path, error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if path.stat().st_size == 0:
        return "zero bytes"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image"
    text = " ".join(str(error).split())
    return "truncated" if "truncated" in text.lower() else text or type(error).__name__


def examine(path: Path) -> tuple[str, tuple[str, ...]]:
    """Why an image file cannot be read ('' when it can), and what is converted when it is.

    The whole file is read, but of a JPEG only an eighth of the rows and columns is computed.
    """
    try:
        with opened(path) as image:
            odd = oddities(image)
            image.draft(image.mode, (1, 1))
            rgb(image)
    except UNREADABLE as error:
        return reason(path, error), ()
    return "", odd


def oddities(image: Image.Image) -> tuple[str, ...]:
    """What makes an image that was opened, but not yet loaded, another than an RGB photograph."""
    found = []
    if min(image.size) == 1:
        found.append("one pixel wide or high")
    if image.mode.startswith("I") or any(";16" in str(tile) for tile in image.tile):
        found.append("16 bits a channel, of which the upper 8 are kept")
    elif image.mode != "RGB":
        found.append(MODES.get(image.mode, f"{image.mode}, converted to RGB"))
    return tuple(found)
