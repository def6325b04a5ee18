"""Views: shapes, ranges, and batches that are a function of their key alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import data.load as load_module
from data import DataConfig, cache, load_data
from data.cache import Resized, Room
from data.decoding import at_sizes
from data.images import ArrayImages, Part, Splits, stratified
from data.transforms import Crops, draw_crops, resize, to_batch
from data.views import Look, View, ahead
from utils.errors import DataError, UsageError

CPU, META = torch.device("cpu"), torch.device("meta")


def digits(size=16, batch_size=100, **flags):
    return load_data(DataConfig(dataset="digits", **flags), size, batch_size, CPU)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 7 noisy pictures of different sizes, and two to test."""
    root, rng = tmp_path_factory.mktemp("photos"), torch.Generator().manual_seed(0)
    for i in range(18):
        split = "train" if i < 14 else "test"
        path = root / split / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (10 + i, 30 - i, 3), generator=rng)
        Image.fromarray(noise.to(torch.uint8).numpy()).save(path)
    return root


def folder(photos, **flags):
    flags = {"workers": 0, **flags}
    config = DataConfig(dataset="imagefolder", data=str(photos), **flags)
    return load_data(config, 16, 4, CPU)


def epoch(view, *key, start=0):
    return list(view.batches(*key, start=start))


def same(a, b):
    assert len(a) == len(b) > 0
    return all(torch.equal(p, q) for one, two in zip(a, b, strict=True)
               for p, q in zip(one, two, strict=True))


@pytest.mark.parametrize("name", ["clean", "prompted", "test"])
def test_batches_are_float_rgb_in_the_unit_range(name):
    view = getattr(digits(), name)
    batches = epoch(view, 7, 0)
    assert len(batches) == len(view)
    assert sum(len(x) for x, _ in batches) == view.images
    for x, y in batches:
        assert x.shape == (len(y), 3, 16, 16) and x.dtype == torch.float32 and x.is_contiguous()
        assert x.min() >= 0 and x.max() <= 1 and y.dtype == torch.int64


def test_the_last_batch_is_kept():
    assert [len(x) for x, _ in epoch(digits(batch_size=1000).clean)] == [1000, 437]


def test_an_epoch_shows_every_training_image_once():
    view = digits().prompted
    labels = torch.cat([y for _, y in epoch(view, 7, 3)])
    assert torch.equal(labels.bincount(), view.labels.bincount())


def test_prompted_images_are_resized_only():
    data = digits(batch_size=2000)
    x, _ = next(data.prompted.batches())
    shown = {image.numpy().tobytes() for image in x}
    source = data.prompted._pixels.images.pixels
    expected = resize(source, 16).expand(-1, 3, -1, -1).float() / 255
    assert shown == {image.numpy().tobytes() for image in expected.contiguous()}


def test_clean_images_are_crops_of_the_larger_copy():
    data = digits(batch_size=50)
    larger = resize(data.clean._pixels.images.pixels, 18)[:, 0].unfold(1, 16, 1).unfold(2, 16, 1)
    crops = larger.reshape(-1, 16, 16)
    known = {c.numpy().tobytes() for c in torch.cat([crops, crops.flip(2)])}
    x, _ = next(data.clean.batches(7, 0))
    assert all(image.numpy().tobytes() in known for image in (x[:, 0] * 255).round().byte())


def test_pixels_are_bytes_over_255():
    x, _ = next(digits().test.batches())
    grid = torch.arange(256, dtype=torch.float32) / 255
    assert torch.isin(x, grid).all()


def test_the_two_views_are_shuffled_independently():
    data = digits()
    assert not torch.equal(epoch(data.clean, 7)[0][1], epoch(data.prompted, 7)[0][1])


def test_the_key_decides_and_nothing_else():
    data = digits()
    first = epoch(data.clean, 7, 0.1, "search", 0)
    epoch(data.clean, 7, 0.1, "search", 1)
    assert same(first, epoch(data.clean, 7, 0.1, "search", 0))
    assert not torch.equal(first[0][0], epoch(data.clean, 7, 0.1, "search", 1)[0][0])


def test_order_and_augmentation_belong_to_the_image_not_to_its_batch():
    many, one = (digits(batch_size=size).clean.batches(7) for size in (100, 2000))
    assert torch.equal(torch.cat([x for x, _ in many]), next(one)[0])


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = epoch(digits().clean, 0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert same(first, epoch(digits().clean, 0))


def test_test_images_ignore_the_key():
    data = digits()
    assert same(epoch(data.test, 1), epoch(data.test, 2))


@pytest.mark.parametrize("name", ["clean", "prompted", "test"])
def test_a_start_continues_exactly(name):
    view = getattr(digits(), name)
    assert same(epoch(view, 7, start=2), epoch(view, 7)[2:])


def test_a_start_after_the_end_gives_nothing():
    view = digits().clean
    assert epoch(view, 7, start=len(view)) == []


@pytest.mark.parametrize("name", ["clean", "prompted"])
@pytest.mark.parametrize("cache_gb", [0.0, 0.0005, 1.0])
def test_the_cache_changes_no_bit_of_arrays(name, cache_gb):
    plain = epoch(getattr(digits(), name), 7)
    assert same(plain, epoch(getattr(digits(cache_gb=cache_gb), name), 7))


@pytest.mark.parametrize("name", ["clean", "prompted"])
@pytest.mark.parametrize("workers, cache_gb", [(0, 0.0), (1, 0.0), (2, 0.0), (2, 1.0), (0, 15e-6)])
def test_workers_and_cache_change_no_bit_of_files(photos, name, workers, cache_gb):
    plain = epoch(getattr(folder(photos), name), 7)
    view = getattr(folder(photos, workers=workers, cache_gb=cache_gb), name)
    assert same(plain, epoch(view, 7)) and same(plain[1:], epoch(view, 7, start=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_one_view_read_twice_at_once(photos, workers):
    view = folder(photos, workers=workers, cache_gb=0.0).clean
    expected = epoch(view, 7)
    pairs = list(zip(view.batches(7), view.batches(7), strict=True))
    assert same([a for a, _ in pairs], expected) and same([b for _, b in pairs], expected)


def test_copies_are_made_before_the_first_step_so_that_a_stop_is_answered(photos, monkeypatch):
    calls = []
    monkeypatch.setattr(cache, "at_sizes", lambda *w: calls.append(w) or at_sizes(*w))
    batches = folder(photos, workers=1, cache_gb=1.0).clean.batches(7)
    assert len(calls) == 1
    assert len(list(batches)) > 1 and len(calls) == 1


def test_a_dropped_epoch_leaves_no_trace(photos):
    view = folder(photos, workers=1, cache_gb=0.0).clean
    expected = epoch(view, 7)
    half = view.batches(8)
    next(half)
    half.close()
    assert same(epoch(view, 7), expected)


def test_a_program_with_living_threads_ends(photos):
    script = (
        "import torch; from data import *; "
        f"c = DataConfig('imagefolder', {str(photos)!r}, workers=2, cache_gb=0.0); "
        "d = load_data(c, 16, 4, torch.device('cpu')); i = d.clean.batches(0); next(i); "
        "j = d.prompted.batches(0); next(j); print('ok')"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True,
                          text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(root)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize("workers, cache_gb", [(0, 0.0), (2, 0.0), (2, 1.0)])
def test_a_damaged_picture_is_one_line_naming_it(tmp_path, workers, cache_gb):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / "a" / "good.png")
    (tmp_path / "train" / "a" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    view = folder(tmp_path, workers=workers, cache_gb=cache_gb).clean
    with pytest.raises(DataError, match="torn.jpg") as caught:
        epoch(view, 7)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 4


def test_batches_kept_by_the_caller_stay_as_they_were():
    view = digits().clean
    kept = epoch(view, 7)
    copies = [(x.clone(), y.clone()) for x, y in view.batches(7)]
    assert same(kept, copies)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_by_hand(channels):
    pixels = torch.randint(0, 256, (6, channels, 18, 18)).to(torch.uint8)
    rows = torch.tensor([4, 0, 5])
    crops = Crops(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1]),
                  torch.tensor([True, False, True]))
    expected = torch.stack([pixels[4, :, 0:16, 2:18].flip(2), pixels[0, :, 1:17, 0:16],
                            pixels[5, :, 2:18, 1:17].flip(2)]).expand(-1, 3, -1, -1) / 255
    assert torch.equal(to_batch(pixels, rows, crops, 16, CPU), expected)


@pytest.mark.parametrize("home", [CPU, META])
@pytest.mark.parametrize("margin", [None, 2])
def test_a_batch_is_made_on_the_device_wherever_its_copies_are(home, margin):
    pixels, rows = torch.zeros(6, 1, 18, 18, dtype=torch.uint8, device=home), torch.arange(4)
    crops = None if margin is None else draw_crops(4, margin, torch.Generator())
    batch = to_batch(pixels, rows, crops, 18 - (margin or 0), META)
    assert batch.device == META and batch.dtype == torch.float32
    assert batch.shape == (4, 3, *[18 - (margin or 0)] * 2)


@pytest.mark.parametrize("augmented", [False, True])
def test_order_crops_and_labels_of_an_epoch_go_to_the_device_at_once(monkeypatch, augmented):
    images = ArrayImages(torch.zeros(12, 3, 9, 9, dtype=torch.uint8))
    pixels = Resized(images, (9,), Room(10**6, META, on_device=10**6), 0)
    look = Look(8 if augmented else 9, 9, 4, META, shuffled=True, augmented=augmented)
    view, moved, move = View("clean", pixels, torch.zeros(12).long(), look), [], torch.Tensor.to

    def counted(tensor, *where, **how):
        if tensor.device.type == "cpu" and META in where:
            moved.append(tuple(tensor.shape))
        return move(tensor, *where, **how)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    assert len(list(view.batches(1))) == 3
    assert moved == [(12,)] * (5 if augmented else 2)


def test_working_ahead_keeps_order_and_errors():
    def failing():
        yield from (1, 2)
        raise DataError("torn")

    items = ahead(failing(), torch.device("cpu"))
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(DataError, match="torn"):
        next(items)


def test_val_images_leave_both_training_views():
    whole, data = digits(), digits(val_fraction=0.25)
    assert (data.val.images, data.clean.images, data.prompted.images) == (359, 1078, 1078)
    assert data.test.images == 360
    pixels = [v._pixels.images.pixels for v in (data.clean, data.val, whole.clean)]
    train, val, both = ([p.numpy().tobytes() for p in images] for images in pixels)
    assert sorted(train + val) == sorted(both)


def test_val_has_the_test_transform_and_a_fixed_order():
    data = digits(val_fraction=0.1)
    x = torch.cat([x for x, _ in epoch(data.val)])
    expected = resize(data.val._pixels.images.pixels, 16).expand(-1, 3, -1, -1) / 255
    assert torch.equal(x, expected)


def test_val_is_none_when_nothing_is_held_out():
    assert digits().val is None


def test_val_is_stratified_and_the_same_whatever_is_trained_on():
    data, fewer = digits(val_fraction=0.5), digits(val_fraction=0.5, train_images=100)
    assert (data.val.labels.bincount() - data.clean.labels.bincount()).abs().max() <= 1
    assert same(epoch(data.val), epoch(fewer.val))


def test_train_images_keeps_a_stratified_fixed_subset():
    data = digits(train_images=100)
    counts = data.clean.labels.bincount()
    assert data.clean.images == data.prompted.images == 100 and data.test.images == 360
    assert counts.min() >= 9 and counts.max() <= 11
    assert same(epoch(data.clean, 7), epoch(digits(train_images=100).clean, 7))


def test_more_train_images_than_there_are_is_a_usage_error():
    with pytest.raises(UsageError, match="--train_images 1438: digits has 1437"):
        digits(train_images=1438)


def test_stratified_shares_by_hand():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    chosen, rest = stratified(labels, 4, "key")
    # shares 2.0, 1.2, 0.8: rounded down 2, 1, 0; the one missing goes to class 2
    assert labels[chosen].bincount().tolist() == [2, 1, 1]
    assert torch.equal(torch.cat([chosen, rest]).sort().values, torch.arange(10))


def test_stratified_choices_depend_on_the_key():
    labels = torch.zeros(50, dtype=torch.int64)
    assert not torch.equal(stratified(labels, 25, "a")[0], stratified(labels, 25, "b")[0])


def test_the_fingerprint_is_stable_and_sees_the_held_out_part():
    assert digits().fingerprint == digits().fingerprint != digits(val_fraction=0.1).fingerprint


def test_the_fingerprint_sees_a_changed_file(photos, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / "a" / "0.png")
    before = folder(tmp_path).fingerprint
    Image.effect_noise((9, 9), 50).save(tmp_path / "train" / "a" / "0.png")
    assert folder(tmp_path).fingerprint != before


def test_labels_outside_the_classes_are_refused(monkeypatch):
    images = ArrayImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    part = Part(images, torch.tensor([0, 2]), ("a", "b"))
    spec = load_module.SPECS["digits"]
    broken = type(spec)(2, lambda root: Splits(part, part))
    monkeypatch.setitem(load_module.SPECS, "digits", broken)
    with pytest.raises(DataError, match="labels outside its 2 classes"):
        digits()
