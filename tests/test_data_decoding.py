"""Decoding in threads: order, failures of a decoder, and a process that ends whatever they do."""

import threading
import time
from pathlib import Path

import cli
import pytest
import torch
from PIL import Image

from data import decoding
from data.decoding import at_sizes, decoded
from data.images import FileImages, file_part
from utils.errors import DataError, Interrupted, VPNsError

THREADS = pytest.mark.parametrize("threads", [0, 1, 2, 5])


@pytest.fixture
def images(tmp_path: Path) -> FileImages:
    """Twelve grey images, each a shade of its own."""
    for row in range(12):
        Image.new("RGB", (6, 5), (20 * row,) * 3).save(tmp_path / f"{row:02}.png")
    samples = [(path, 0) for path in sorted(tmp_path.glob("*.png"))]
    return file_part(tmp_path, samples, ["a"]).images


@THREADS
def test_results_come_in_order_whoever_is_fast(images: FileImages, threads: int) -> None:
    def work(row: int) -> int:
        time.sleep(0.002 * (row % 3))
        return row

    assert list(decoded(images, work, range(12), threads, ahead=4)) == list(range(12))


@THREADS
def test_batches_have_their_rows_at_every_size(images: FileImages, threads: int) -> None:
    batches = [torch.tensor([7, 2, 5]), torch.tensor([1])]
    for pixels in zip(*at_sizes(images, (4, 8), batches, threads), strict=True):
        assert [batch[:, 0, 0, 0].tolist() for batch in pixels] == [[140, 40, 100], [20]]
    assert pixels[0].shape == (3, 3, 8, 8)


def fails(error: BaseException, images: FileImages, threads: int) -> None:
    def work(row: int) -> int:
        if row == 3:
            raise error
        return row

    list(decoded(images, work, range(12), threads))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_image_that_cannot_be_read_says_so_itself(images: FileImages, threads: int) -> None:
    with pytest.raises(DataError, match="cannot read it"):
        fails(DataError("cannot read it"), images, threads)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_decoder_without_memory_names_image_and_flags(images: FileImages, threads: int) -> None:
    with pytest.raises(VPNsError, match=r"no memory .*03\.png: .*--workers") as caught:
        fails(MemoryError(), images, threads)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("threads", [0, 2])
def test_a_decoder_that_fails_names_the_image_and_the_reason(
    images: FileImages, threads: int
) -> None:
    with pytest.raises(VPNsError, match=r"03\.png \(KeyError: 'x'\)") as caught:
        fails(KeyError("x"), images, threads)
    assert caught.value.exit_code == 1


def test_a_stuck_decoder_is_given_up(
    images: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PATIENCE", 0.05)
    held = threading.Event()
    with pytest.raises(VPNsError, match=r"03\.png was not read within 0\.05 seconds"):
        list(decoded(images, lambda row: held.wait(20) if row == 3 else row, range(12), 2))
    held.set()


def test_threads_that_cannot_be_started_are_done_without(
    images: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert list(decoded(images, lambda row: row, range(12), 3)) == list(range(12))


def test_the_threads_end_with_whoever_stops_reading(images: FileImages) -> None:
    before = threading.active_count()
    stream = decoded(images, lambda row: row, range(12), 4)
    next(stream)
    with pytest.raises(Interrupted):
        stream.throw(Interrupted("stopped"))
    assert threading.active_count() == before


@pytest.mark.parametrize("words", [(), ("--check_data",)], ids=["run", "check"])
def test_a_run_with_a_stuck_decoder_ends_with_1_and_its_reason(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    for part in ("train", "test"):
        for name in "ab":
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for row in range(4):
                Image.new("RGB", (8, 8), (row, 0, 0)).save(folder / f"{row}.png")

    def stick() -> None:
        decoding.PATIENCE = 0.2
        Image.open = lambda path, **_: time.sleep(60)

    flags = ["--dataset", "imagefolder", "--data", tmp_path / "images", "--train_images", 0,
             "--batch_size", 4, "--density_list", 0.1, "--workers", 2, *words]  # fmt: skip
    done = cli.forked(tmp_path / "run", *flags, before=stick)
    assert done.code == 1 and "was not read within 0.2 seconds" in done.error
