"""Which image files count as unreadable, as odd or as changed, and what is left without some."""

import io
import os
import signal
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import images as images_module
from data.faults import readable
from data.images import READ_BYTES, Splits, array_part, file_part
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
def pipe(tmp_path):
    """A pipe that nobody writes into; a test that waits for it fails."""
    def waited(*_):
        pytest.fail("waited for the pipe")

    os.mkfifo(tmp_path / "pipe.png")
    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(20)
    yield tmp_path / "pipe.png"
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_pipe_is_unreadable_and_is_not_waited_for(pipe):
    assert examine(pipe) == ("no regular file", ())
    with pytest.raises(DataError, match=r"pipe.png \(no regular file\): .*--bad_images skip"):
        decode(pipe)


def test_a_link_to_an_image_is_an_image(tmp_path):
    (tmp_path / "whole.png").write_bytes(KINDS["png"])
    (tmp_path / "link.png").symlink_to("whole.png")
    assert examine(tmp_path / "link.png") == ("", ()) and decodes(tmp_path / "link.png")


@pytest.fixture
def part(tmp_path):
    """150 images of which the 3rd, the 64th and the last cannot be read."""
    paths = [tmp_path / f"{i:03}.png" for i in range(150)]
    for i, path in enumerate(paths):
        Image.new("RGB", (2, 2), (i, i, i)).save(path)
    for i in (2, 63, 149):
        paths[i].write_bytes(b"")
    return file_part(tmp_path, [(path, i % 3) for i, path in enumerate(paths)], "abc")


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_are_found_with_any_workers(part, workers):
    _, faults = readable(Splits(part, part), workers)
    paths = [part.images.shown(row) for row in (2, 63, 149)]
    assert [each.unreadable for each in faults] == [dict.fromkeys(paths, "zero bytes")] * 2


def test_what_is_left_keeps_order_labels_and_classes(part):
    kept, _ = readable(Splits(part, part), 0)
    rows = [i for i in range(150) if i not in (2, 63, 149)]
    assert kept.train.labels.tolist() == [i % 3 for i in rows]
    assert [kept.train.images.path(i).name for i in range(147)] == [f"{i:03}.png" for i in rows]
    assert kept.train.classes == ("a", "b", "c")


def test_arrays_have_no_faults():
    whole = array_part(np.zeros((3, 1, 4, 4), np.uint8), [0, 0, 0], "a")
    kept, faults = readable(Splits(whole, whole), 2)
    assert kept.test is whole and faults == (({}, {}), ({}, {}))
    assert torch.equal(kept.train.labels, whole.labels)


# The bytes by which changed files are noticed


def numbered(root, count, size=3):
    """So many files of `size` bytes, and what their identity was."""
    paths = [root / f"{i:05}.png" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(i.to_bytes(size, "big"))
    return paths, identity(root, paths)


def identity(root, paths):
    return b"".join(file_part(root, [(path, 0) for path in paths], "a").images.identity())


def grown(path):
    path.write_bytes(path.read_bytes() + b"!")


def flipped(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))


@pytest.mark.parametrize("row", range(0, 90, 7))
def test_other_content_of_the_same_size_is_noticed_in_any_of_90_files(tmp_path, row):
    paths, before = numbered(tmp_path, 90)
    flipped(paths[row])
    assert identity(tmp_path, paths) != before


@pytest.mark.parametrize("row", [1, 7, 777, 1499])
def test_another_size_is_noticed_in_any_of_1500_files(tmp_path, row):
    paths, before = numbered(tmp_path, 1500)
    grown(paths[row])
    assert identity(tmp_path, paths) != before


@pytest.mark.parametrize("row", [0, 1, 7, 777, 1499])
def test_another_name_is_noticed_in_any_of_1500_files(tmp_path, row):
    paths, before = numbered(tmp_path, 1500)
    paths[row] = paths[row].rename(paths[row].with_suffix(".jpg"))
    assert identity(tmp_path, paths) != before


@pytest.mark.parametrize(("limit", "change"), [("SIZED", grown), ("READ", flipped)])
def test_where_there_are_more_files_those_looked_at_are_spread_evenly(
    tmp_path, monkeypatch, limit, change
):
    monkeypatch.setattr(images_module, limit, 10)
    paths, before = numbered(tmp_path, 40)
    noticed = []
    for row, path in enumerate(paths):
        change(path)
        noticed += [row] if identity(tmp_path, paths) != before else []
        path.write_bytes(row.to_bytes(3, "big"))
    assert noticed == list(range(0, 40, 4))


@pytest.mark.parametrize(("size", "noticed"), [(READ_BYTES, True), (READ_BYTES + 1, False)])
def test_content_is_looked_at_up_to_a_mebibyte_a_file(tmp_path, size, noticed):
    paths, before = numbered(tmp_path, 1, size)
    flipped(paths[0])
    assert (identity(tmp_path, paths) != before) == noticed


def test_sizes_are_told_apart_from_one_another(tmp_path):
    """1 and 11 bytes are not 11 and 1."""
    paths, found = [tmp_path / "0.png", tmp_path / "1.png"], set()
    for sizes in ((1, 11), (11, 1)):
        for path, size in zip(paths, sizes, strict=True):
            path.write_bytes(b"x" * size)
        found.add(identity(tmp_path, paths))
    assert len(found) == 2


def test_the_identity_does_not_wait_for_a_pipe(pipe):
    with pytest.raises(DataError, match=r"pipe.png \(no regular file\): .*--bad_images skip"):
        identity(pipe.parent, [pipe])


def test_the_identity_names_a_missing_file_and_how_to_go_on_without(tmp_path):
    paths, _ = numbered(tmp_path, 3)
    paths[1].unlink()
    with pytest.raises(DataError, match=r"00001.png \(No such file or directory\): get it again, "
                       "or leave such images out with --bad_images skip"):
        identity(tmp_path, paths)
