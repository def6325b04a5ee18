"""Class folders: imagefolder and Tiny-ImageNet, right and wrong."""

import pytest
from test_data_specs import load, picture, seen, text

from utils.errors import DataError


def tree(root, *names):
    for i, name in enumerate(names):
        picture(root / f"{name}.png", 10 * i)
    return root


@pytest.mark.parametrize("test", ["test", "val"])
def test_imagefolder_reads_test_or_val(tmp_path, test):
    tree(tmp_path, "train/cat/0", "train/dog/1", f"{test}/dog/2")
    data = load("imagefolder", tmp_path)
    assert data.classes == ("cat", "dog")
    assert seen(data.prompted) == [(0, 0), (10, 1)] and seen(data.test) == [(20, 1)]


def test_a_class_missing_in_test_keeps_the_numbers_of_the_others(tmp_path):
    tree(tmp_path, "train/a/0", "train/b/1", "train/c/2", "test/a/3", "test/c/4")
    assert seen(load("imagefolder", tmp_path).test) == [(30, 0), (40, 2)]


def test_a_class_of_test_unknown_in_training_is_refused(tmp_path):
    tree(tmp_path, "train/a/0", "train/c/1", "test/a/2", "test/b/3", "test/c/4")
    with pytest.raises(DataError, match=r"test has class folders .*\(b\)"):
        load("imagefolder", tmp_path)


def test_test_images_without_class_folders_are_refused(tmp_path):
    tree(tmp_path, "train/a/0", "val/1")
    with pytest.raises(DataError, match="val has no class folders"):
        load("imagefolder", tmp_path)


def test_missing_test_part_is_refused(tmp_path):
    tree(tmp_path, "train/a/0")
    with pytest.raises(DataError, match="incomplete: no test or val"):
        load("imagefolder", tmp_path)


def test_empty_test_part_is_refused(tmp_path):
    tree(tmp_path, "train/a/0")
    (tmp_path / "test" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no test images"):
        load("imagefolder", tmp_path)


def test_hidden_files_and_folders_are_no_data(tmp_path):
    tree(tmp_path, "train/a/0", "train/.cache/1", "train/a/._2", "test/a/3")
    data = load("imagefolder", tmp_path)
    assert data.classes == ("a",) and data.clean.images == 1


def test_a_folder_that_is_a_symbolic_link_is_followed(tmp_path):
    tree(tmp_path / "real", "train/a/0", "test/a/1")
    (tmp_path / "imagefolder").symlink_to(tmp_path / "real")
    assert load("imagefolder", tmp_path).clean.images == 1


def tiny(root, val=("images/v0", "images/v1")):
    base = root / "tiny_imagenet" / "tiny-imagenet-200"
    tree(base, "train/n02/images/n02_0", "train/n01/images/n01_0", *(f"val/{v}" for v in val))
    text(base / "wnids.txt", "n02", "n01")
    return base


def test_tiny_imagenet_numbers_classes_by_rank_and_reads_the_annotations(tmp_path):
    base = tiny(tmp_path)
    text(base / "val" / "val_annotations.txt", "v0.png\tn02\t0\t0\t9\t9", "v1.png\tn01\t0\t0\t9\t9")
    data = load("tiny_imagenet", tmp_path)
    assert data.classes == ("n01", "n02")
    assert seen(data.prompted) == [(0, 1), (10, 0)] and seen(data.test) == [(20, 1), (30, 0)]


@pytest.mark.parametrize("place", ["{}/{}", "{}/images/{}", "images/{}/{}"])
def test_tiny_imagenet_with_val_sorted_into_folders(tmp_path, place):
    tiny(tmp_path, [place.format("n02", "v0"), place.format("n01", "v1")])
    assert seen(load("tiny_imagenet", tmp_path).test) == [(20, 1), (30, 0)]


def test_tiny_imagenet_sorted_beside_an_empty_images_folder(tmp_path):
    base = tiny(tmp_path, ["n02/v0", "n01/v1"])
    (base / "val" / "images").mkdir()
    text(base / "val" / "val_annotations.txt", "v0.png\tn02\t0\t0\t9\t9")
    assert seen(load("tiny_imagenet", tmp_path).test) == [(20, 1), (30, 0)]


def test_tiny_imagenet_flat_without_annotations_is_refused(tmp_path):
    tiny(tmp_path)
    with pytest.raises(DataError, match="val_annotations.txt is missing"):
        load("tiny_imagenet", tmp_path)


def test_tiny_imagenet_with_an_annotated_image_missing_is_refused(tmp_path):
    base = tiny(tmp_path)
    text(base / "val" / "val_annotations.txt", "v0.png\tn02", "v7.png\tn01")
    with pytest.raises(DataError, match="v7.png"):
        load("tiny_imagenet", tmp_path)


def test_tiny_imagenet_with_an_unknown_class_in_the_annotations_is_refused(tmp_path):
    base = tiny(tmp_path)
    text(base / "val" / "val_annotations.txt", "v0.png\tn02", "v1.png\tn09")
    with pytest.raises(DataError, match="n09"):
        load("tiny_imagenet", tmp_path)


def test_tiny_imagenet_with_a_training_class_missing_is_refused(tmp_path):
    base = tiny(tmp_path)
    text(base / "wnids.txt", "n01", "n02", "n03")
    with pytest.raises(DataError, match="n03"):
        load("tiny_imagenet", tmp_path)
