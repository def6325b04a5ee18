"""Resized copies stay within their limit, wherever they end up."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import cache
from data.cache import Resized, Room, room
from data.images import ArrayImages, FileImages

CPU, META = torch.device("cpu"), torch.device("meta")
COUNT, SIZES = 6, (8, 4)
LARGE, SMALL = (COUNT * 3 * size * size for size in SIZES)
BOTH = LARGE + SMALL


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with 4 GB left."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 10**9, 8 * 10**9))
    return torch.device("cuda")


@pytest.fixture
def photos(tmp_path):
    names = [f"{i}.png" for i in range(COUNT)]
    for name in names:
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    return FileImages(tmp_path, np.array(names, dtype=np.bytes_))


def test_a_gpu_holds_a_quarter_of_what_it_has_left(gpu):
    assert room(100, gpu).on_device == 10**9


def test_a_gpu_holds_no_more_than_the_limit(gpu):
    assert room(0.5, gpu).on_device == room(0.5, gpu).memory == 5 * 10**8
    assert room(0, gpu).on_device == 0


def test_without_a_limit_it_is_a_quarter_of_the_memory_on_a_gpu_too(gpu, monkeypatch):
    monkeypatch.setattr(cache, "usable_memory", lambda: 4000)
    assert room(None, gpu) == Room(1000, gpu, 1000)
    assert room(None, CPU) == Room(1000, CPU, 0)


@pytest.mark.parametrize(
    ("limit", "on_device", "homes"),
    [
        (BOTH, BOTH, [META, META]),
        (BOTH, LARGE, [META, CPU]),
        (BOTH, 0, [CPU, CPU]),
        (BOTH - 1, BOTH - 1, [META, None]),
        (LARGE - 1, LARGE - 1, [None, META]),
        (SMALL - 1, SMALL - 1, [None, None]),
    ],
)
@pytest.mark.parametrize("kind", ["files", "an array"])
def test_copies_go_to_the_device_first_and_fit_the_limit(photos, kind, limit, on_device, homes):
    pixels = torch.zeros(COUNT, 3, 9, 9, dtype=torch.uint8)
    images = photos if kind == "files" else ArrayImages(pixels)
    resized = Resized(images, SIZES, Room(limit, META, on_device), workers=0)
    assert [resized._homes.get(size) for size in SIZES] == homes


@pytest.mark.parametrize("limit", [BOTH, BOTH - 1])
@pytest.mark.parametrize("free", [LARGE, BOTH, 100 * BOTH])
@pytest.mark.parametrize("kind", ["files", "an array"])
def test_no_more_than_the_limit_is_kept_for_a_gpu(photos, monkeypatch, kind, limit, free):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * free, 8 * free))
    space = room(limit / 1e9, torch.device("cuda"))
    space.device = META  # which is there on every machine
    images = photos if kind == "files" else ArrayImages(torch.zeros(COUNT, 3, 9, 9).byte())
    resized = Resized(images, SIZES, space, workers=0)
    next(resized.batches(SIZES[0], [torch.arange(2)]))
    next(resized.batches(SIZES[1], [torch.arange(2)]))
    assert 0 < sum(copies.numel() for copies in resized._copies.values()) <= limit


def test_all_sets_share_the_limit(photos):
    space = Room(BOTH, META, BOTH)
    Resized(photos, SIZES, space, workers=0)
    later = Resized(photos, SIZES, space, workers=0)
    assert space.take(1) is None and not later._homes
