"""Which image files count as unreadable, which as odd, and what is left when some are left out."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.faults import find_faults, readable
from data.images import Splits, array_part, file_part
from data.picture import decode, examine
from utils.errors import DataError


def encoded(suffix, **options):
    """A smooth picture as a file of that kind."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((48, 40), Image.BICUBIC).save(file, suffix, **options)
    return file.getvalue()


KINDS = {
    "jpg": encoded("jpeg"),
    "progressive.jpg": encoded("jpeg", progressive=True),
    "png": encoded("png"),
    "tif": encoded("tiff"),
    "webp": encoded("webp"),
}


def decodes(path):
    try:
        return decode(path) is not None
    except DataError:
        return False


@pytest.mark.filterwarnings("ignore")  # PIL's, of the damage
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_examining_agrees_with_decoding_on_files_cut_or_changed_anywhere(
    kind, data, tmp_path_factory
):
    whole = KINDS[kind]
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"image.{kind}"
    path.write_bytes(content)
    assert decodes(path) == (not examine(path)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_has_nothing_to_report(tmp_path, kind):
    (tmp_path / f"image.{kind}").write_bytes(KINDS[kind])
    assert examine(tmp_path / f"image.{kind}") == ("", ())


def deep_rgb_png():
    """A PNG of 3 x 2 pixels with 16 bits a channel, which PIL opens as RGB without a word."""
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xc0\xff" * 9) * 2)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def test_colours_of_16_bits_are_recognised(tmp_path):
    (tmp_path / "deep.png").write_bytes(deep_rgb_png())
    assert examine(tmp_path / "deep.png")[1][0].startswith("16 bits a channel")
    assert decode(tmp_path / "deep.png").unique().tolist() == [0xC0]


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70_000), ("I", -1)])
def test_numbers_of_unknown_range_are_refused_not_clipped(tmp_path, mode, value):
    Image.new(mode, (2, 2), value).save(tmp_path / "image.tif")
    assert examine(tmp_path / "image.tif")[0] and not decodes(tmp_path / "image.tif")


def test_a_missing_file_says_so(tmp_path):
    assert examine(tmp_path / "gone.jpg") == ("No such file or directory", ())


@pytest.fixture
def part(tmp_path):
    """150 images of which the 3rd, the 64th and the last cannot be read."""
    paths = [tmp_path / f"{i:03}.png" for i in range(150)]
    for i, path in enumerate(paths):
        Image.new("RGB", (2, 2), (i, i, i)).save(path)
    for i in (2, 63, 149):
        paths[i].write_bytes(b"")
    return file_part(tmp_path, paths, [i % 3 for i in range(150)], "abc")


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_are_found_by_row_with_any_workers(part, workers):
    found = find_faults(part.images, workers, "")
    assert found.unreadable == {2: "zero bytes", 63: "zero bytes", 149: "zero bytes"}


def test_what_is_left_keeps_order_labels_and_classes(part):
    kept, left_out = readable(Splits(part, part), 0)
    rows = [i for i in range(150) if i not in (2, 63, 149)]
    assert kept.train.labels.tolist() == [i % 3 for i in rows]
    assert [kept.train.images.path(i).name for i in range(147)] == [f"{i:03}.png" for i in rows]
    assert kept.train.classes == ("a", "b", "c") and len(left_out) == 6


def test_arrays_have_no_faults():
    whole = array_part(np.zeros((3, 1, 4, 4), np.uint8), [0, 0, 0], "a")
    kept, left_out = readable(Splits(whole, whole), 2)
    assert kept.test is whole and left_out == ()
    assert torch.equal(kept.train.labels, whole.labels)
