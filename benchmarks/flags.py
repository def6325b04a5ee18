"""The flags of the benchmarks: what is no value of one is refused in a line, with exit code 2."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from utils import config
from utils.config import number

Parse = Callable[[str], Any]
PICTURES = (".png", ".pdf", ".svg")


class Parser(config.Parser):
    """The program's parser, which here ends with one line itself."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def whole(low: int) -> Parse:
    """A parser of whole numbers of at least `low`."""
    return _typed(number(int, low))


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    value = _typed(number(float, 0, 1))(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text} is out of range: it must be above 0")
    return value


def several(parse: Parse) -> Parse:
    """A parser of what `parse` takes, one or more of it, between commas."""
    return lambda text: tuple(parse(part.strip()) for part in text.split(","))


def one_of(choices: tuple[str, ...]) -> Parse:
    """A parser of one of some words; argparse's own choices cannot be within a list."""

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(choices)}")
        return text

    return parse


def picture(text: str) -> Path:
    """A file that a plot can be drawn to: known before anything is measured."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(PICTURES)}")
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that there is")
    return path


def _typed(parse: Parse) -> Parse:
    """argparse shows the reason of an ArgumentTypeError alone."""

    def parse_text(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_text


def add_keep_memory(parser: argparse.ArgumentParser) -> None:
    """Add --keep_memory to a benchmark's flags."""
    parser.add_argument(
        "--keep_memory", action="store_true", help="for all alike, as main_vpns.py does"
    )
