"""Pixels: decoding odd files, the resize, crops and flips."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.picture import decode
from data.transforms import Crops, clean_size, cut, cut_into, draw_crops, resize
from utils.errors import DataError


def random_images(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_clean_size_is_nine_eighths_rounded_down():
    sizes = {224: 252, 192: 216, 160: 180, 128: 144, 96: 108, 64: 72, 32: 36, 16: 18, 20: 22}
    assert {size: clean_size(size) for size in sizes} == sizes


@pytest.mark.parametrize("source, size", [(32, 36), (32, 252), (28, 16), (64, 9)])
def test_resize_gives_the_same_bits_alone_and_in_a_batch(source, size):
    images = random_images(5, 3, source, source)
    alone = torch.cat([resize(image[None], size) for image in images])
    assert torch.equal(resize(images, size), alone)


def test_resize_of_grey_equals_resize_of_its_rgb_copy():
    grey = random_images(3, 1, 28, 28)
    assert torch.equal(resize(grey, 36).expand(-1, 3, -1, -1), resize(grey.repeat(1, 3, 1, 1), 36))


def test_resize_ignores_the_aspect():
    image = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    image[..., :4] = 200
    assert resize(image, 4)[0, 0, 0].tolist() == [200, 200 - 25, 25, 0]


def test_resize_is_close_to_pil():
    image = random_images(3, 40, 60)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((24, 24), Image.BILINEAR)
    ours = resize(image[None], 24)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - np.asarray(pil).astype(int)).max() <= 1


def test_crop_and_flip_by_hand():
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(2, 1, 1, 1)
    crops = Crops(torch.tensor([1, 0]), torch.tensor([2, 1]), torch.tensor([False, True]))
    out = torch.empty(2, 1, 2, 2)
    cut_into(out, image, [0, 1], crops)
    assert out[:, 0].tolist() == [[[6, 7], [10, 11]], [[2, 1], [6, 5]]]


def test_cropping_grey_into_rgb_copies_the_channel():
    image = random_images(1, 1, 4, 4)
    out = torch.empty(1, 3, 3, 3)
    cut_into(out, image, [0], Crops(*torch.tensor([[1], [0]]), torch.tensor([True])))
    assert torch.equal(out[0, 0], image[0, 0, 1:, :3].flip(1).float())
    assert torch.equal(out[0, 0], out[0, 1]) and torch.equal(out[0, 0], out[0, 2])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 3))
def test_slices_and_gather_crop_the_same(seed, size, margin):
    images = random_images(7, 3, size + margin, size + margin)
    rng = torch.Generator().manual_seed(seed)
    rows, crops = torch.randperm(7, generator=rng)[:5], draw_crops(5, margin, rng)
    out = torch.empty(5, 3, size, size, dtype=torch.uint8)
    cut_into(out, images, rows.tolist(), crops)
    assert torch.equal(out, cut(images, rows, crops, size))


def test_drawn_crops_reach_both_ends_and_flip_half():
    crops = draw_crops(4000, 4, torch.Generator().manual_seed(0))
    for corner in (crops.tops, crops.lefts):
        assert corner.unique().tolist() == [0, 1, 2, 3, 4]
    assert abs(crops.flips.float().mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    "mode, color, suffix, expected",
    [
        ("L", 70, "png", (70, 70, 70)),
        ("RGBA", (10, 20, 30, 128), "png", (10, 20, 30)),
        ("CMYK", (255, 255, 255, 255), "tif", (0, 0, 0)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (70, 200), "png", (70, 70, 70)),
        ("I;16", 0xC0FF, "png", (0xC0, 0xC0, 0xC0)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, color, suffix, expected):
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (3, 2), color).save(path)
    pixels = decode(path)
    assert pixels.shape == (3, 2, 3) and pixels.dtype == torch.uint8
    assert tuple(pixels[:, 0, 0].tolist()) == expected


def test_a_palette_becomes_its_colours(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.save(tmp_path / "image.png", transparency=0)
    assert decode(tmp_path / "image.png")[:, 1, 1].tolist() == [9, 8, 7]


@pytest.mark.parametrize("suffix, kept", [("jpg", 0.5), ("png", 0.5), ("jpg", 0), ("png", 0.02)])
def test_a_truncated_image_is_a_data_error_naming_the_file(tmp_path, suffix, kept):
    path = tmp_path / f"broken.{suffix}"
    noise = random_images(64, 64, 3).numpy()
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(DataError, match=f"broken.{suffix}") as caught:
        decode(path)
    assert "\n" not in str(caught.value)


def test_a_missing_image_is_a_data_error_naming_the_file(tmp_path):
    with pytest.raises(DataError, match="gone.jpg"):
        decode(tmp_path / "gone.jpg")
