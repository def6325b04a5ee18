"""One image file: decoded to RGB, or examined without keeping its pixels."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils.errors import DataError, VPNsError, beyond_limit, message_of
from utils.files import size_of

# PIL warns of odd metadata, which is no fault of the pixels, and of damage, which is an error here.
warnings.filterwarnings("ignore", module=r"PIL\.")

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError,
              NotImplementedError, TypeError, struct.error, zlib.error,
              Image.DecompressionBombError)  # fmt: skip
# What a file may be, whatever its name ends in: others of PIL start programs, as PostScript does.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
MOST_PIXELS = 2**26  # 8,192 x 8,192; decoding takes some 15 bytes for each
LONGEST = 2**15  # pixels of a side; to shrink one takes memory in proportion to it
ORIENTATION = 274  # tag of EXIF: how the camera was held
TILE_WIDTH, TILE_HEIGHT = 322, 323  # tags of TIFF
ADVICE = "or leave such images out with --bad_images skip (--check_data lists them)"
TOO_LARGE = "too large"  # begins the reason where an image has more pixels than are decoded
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
    """An image file as uint8 RGB (3, H, W), whatever its mode. Raises DataError that names it."""
    try:
        with _opened(path) as image:
            return torch.from_numpy(_rgb(image)).permute(2, 0, 1)
    except UNREADABLE as error:
        raise refusal(path, error) from error


def examine(path: Path) -> tuple[str, tuple[str, ...]]:
    """Why an image file cannot be read ('' when it can), and what is converted when it is."""
    try:
        with _opened(path) as image:
            conversions = _conversions(image)
            image.draft(image.mode, (1, 1))  # all of a JPEG is read, an eighth of it computed
            _rgb(image)
    except UNREADABLE as error:
        if beyond_limit(error):
            raise refusal(path, error) from error
        return _reason(path, error), ()
    return "", conversions


def _opened(path: Path) -> Image.Image:
    """An image file whose pixels are not loaded yet, of one of FORMATS and not too large."""
    size_of(path)  # opening a pipe would wait for somebody who writes into it
    image = Image.open(path, formats=FORMATS)
    tags = getattr(image, "tag_v2", {})  # of a TIFF, whose tiles may be larger than it is
    for width, height in (image.size, (tags.get(TILE_WIDTH, 1), tags.get(TILE_HEIGHT, 1))):
        if width * height > MOST_PIXELS or max(width, height) > LONGEST:
            image.close()
            raise ValueError(f"{TOO_LARGE}: {width:,} x {height:,} pixels, more than "
                             f"{MOST_PIXELS:,} or than {LONGEST:,} in a row")
    return image


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an open image as uint8 (H, W, 3)."""
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if image.mode.startswith("I"):  # 16 bits a pixel: PIL would clip them to 8
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("more than 16 bits a pixel")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    elif image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _conversions(image: Image.Image) -> tuple[str, ...]:
    """What sets an image that was opened, but not yet loaded, apart from an RGB photograph."""
    thin = ("one pixel wide or high",) if min(image.size) == 1 else ()
    if image.mode.startswith("I") or any(";16" in str(tile) for tile in image.tile):
        return (*thin, "16 bits a channel, of which the upper 8 are kept")
    other = MODES.get(image.mode, f"{image.mode}, converted to RGB")
    return thin if image.mode == "RGB" else (*thin, other)


def refusal(path: Path, error: Exception) -> VPNsError:
    """The error that names an image file which cannot be read, and says why and what to do."""
    reason = _reason(path, error)
    what = f"cannot read the image {path} ({reason})"
    if advice := beyond_limit(error):
        return VPNsError(f"{what}: {advice}")
    way = "scale it down" if reason.startswith(TOO_LARGE) else "get it again"
    return DataError(f"{what}: {way}, {ADVICE}")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if path.stat().st_size == 0:
        return "zero bytes"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image"
    text = message_of(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"{TOO_LARGE}: {text}"
    return "truncated" if "truncated" in text.lower() else text
