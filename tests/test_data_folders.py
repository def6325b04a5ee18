"""Class folders: imagefolder and Tiny-ImageNet, right and wrong."""

import re

import pytest
from PIL import Image
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


def test_the_order_of_the_class_folders_of_test_says_nothing(tmp_path):
    tree(tmp_path, "train/b/0", "train/a/1", "train/c/2", "test/c/3", "test/a/4", "test/b/5")
    data = load("imagefolder", tmp_path)
    assert data.classes == ("a", "b", "c")
    assert seen(data.prompted) == [(0, 1), (10, 0), (20, 2)]
    assert seen(data.test) == [(30, 2), (40, 0), (50, 1)]


def test_numbers_as_class_names_are_sorted_as_text_in_both_splits(tmp_path):
    tree(tmp_path, "train/2/0", "train/10/1", "train/1/2", "test/2/3", "test/10/4")
    data = load("imagefolder", tmp_path)
    assert data.classes == ("1", "10", "2") and seen(data.test) == [(30, 2), (40, 1)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_folder_keeps_the_numbers_of_the_others(tmp_path, split):
    tree(tmp_path, "train/a/0", "train/c/1", "test/a/2", "test/c/3")
    for folder in {"train", split}:
        (tmp_path / folder / "b").mkdir()
    data = load("imagefolder", tmp_path)
    assert data.classes == ("a", "b", "c")
    assert seen(data.prompted) == [(0, 0), (10, 2)] and seen(data.test) == [(20, 0), (30, 2)]


def test_a_class_folder_missing_in_training_is_refused_also_when_it_is_the_last(tmp_path):
    tree(tmp_path, "train/a/0", "train/b/1", "test/a/2", "test/z/3")
    with pytest.raises(DataError, match=r"\(z\): make their names agree"):
        load("imagefolder", tmp_path)


def test_a_class_folder_in_other_letters_is_refused(tmp_path):
    tree(tmp_path, "train/Cat/0", "test/cat/1")
    with pytest.raises(DataError, match=r"\(cat\)"):
        load("imagefolder", tmp_path)


def test_an_empty_training_part_is_refused(tmp_path):
    tree(tmp_path, "test/a/0")
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no training images"):
        load("imagefolder", tmp_path)


def test_classes_without_test_images_are_noted(tmp_path):
    tree(tmp_path, *(f"train/{name}/0" for name in "abcdef"), "test/b/1")
    (tmp_path / "test" / "a").mkdir()
    notes = load("imagefolder", tmp_path).notes
    assert notes == ("classes without test images: 5 of 6 (a, c, d and 2 more)",)


def test_classes_without_training_images_are_noted(tmp_path):
    tree(tmp_path, "train/a/0", "test/a/1", "test/b/2")
    (tmp_path / "train" / "b").mkdir()
    assert load("imagefolder", tmp_path).notes == ("classes without training images: 1 of 2 (b)",)


def test_classes_are_noted_that_are_without_images_once_unreadable_ones_are_left_out(tmp_path):
    tree(tmp_path, "train/a/0", "train/b/1", "test/a/2")
    text(tmp_path / "test" / "b" / "3.png", "no image")
    notes = load("imagefolder", tmp_path, bad_images="skip").notes
    assert notes[0] == "classes without test images: 1 of 2 (b)" and "left out" in notes[1]


@pytest.mark.parametrize("flags", [{"train_images": 1}, {"val_fraction": 0.5}])
def test_classes_that_were_not_drawn_are_not_noted(tmp_path, flags):
    tree(tmp_path, "train/a/0", "train/b/1", "test/a/2", "test/b/3")
    data = load("imagefolder", tmp_path, **flags)
    assert len(data.clean.labels.unique()) == 1 and data.notes == ()


def test_a_class_whose_name_is_no_utf_8_can_be_noted(tmp_path):
    tree(tmp_path, "train/a/0", "train/\udcff/1", "test/a/2")
    (note,) = load("imagefolder", tmp_path).notes
    assert note.endswith(r"1 of 2 (\udcff)") and note.encode()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_class_folders_names_the_folder_and_the_fix(tmp_path, split):
    tree(tmp_path, "train/a/0", "test/a/1")
    (tmp_path / split).rename(tmp_path / "aside")
    tree(tmp_path, f"{split}/2")
    with pytest.raises(DataError, match=f"{split} has no class folders: sort its images"):
        load("imagefolder", tmp_path)


def test_a_class_of_test_unknown_in_training_is_refused(tmp_path):
    tree(tmp_path, "train/a/0", "train/c/1", "test/a/2", "test/b/3", "test/c/4")
    with pytest.raises(DataError, match=r"test has class folders .*\(b\)"):
        load("imagefolder", tmp_path)


def test_test_images_without_class_folders_are_refused(tmp_path):
    tree(tmp_path, "train/a/0", "val/1")
    with pytest.raises(DataError, match="val has no class folders"):
        load("imagefolder", tmp_path)


SPLIT = ("a/0", "a/1", "b/2", "b/3")


@pytest.mark.parametrize(
    "test", ["test", "testing", "Test", "TEST", "val", "valid", "validation", "dev", "eval", "Val"]
)
@pytest.mark.parametrize("train", ["train", "Train", "training"])
def test_parts_are_known_by_the_names_that_people_give_them(tmp_path, train, test):
    tree(tmp_path, *(f"{train}/{name}" for name in SPLIT), f"{test}/b/4")
    data = load("imagefolder", tmp_path)
    assert len(data.clean.labels) == 4 and seen(data.test) == [(40, 1)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train", "seg_test"),
        ("Train Set", "Test Set"),
        ("training_set", "test_set"),
        ("train_images", "val"),
    ],
)
def test_parts_are_known_by_a_word_in_their_names(tmp_path, train, test):
    tree(tmp_path, *(f"{train}/{name}" for name in SPLIT), f"{test}/b/4", "seg_pred/5")
    assert seen(load("imagefolder", tmp_path).test) == [(40, 1)]


def test_images_in_folders_within_classes_are_found_without_parts(tmp_path):
    tree(tmp_path, *(f"{name}/{sub}/{i}" for name in "ab" for sub in "xy" for i in range(5)))
    data = load("imagefolder", tmp_path)
    assert data.classes == ("a", "b") and len(data.clean.labels) == 16


def test_what_lies_there_is_named_when_it_is_no_layout(tmp_path):
    (tmp_path / "one/more").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    with pytest.raises(DataError, match=r"no class folders with images \(one, two\): sort them"):
        load("imagefolder", tmp_path)


LAYOUTS = {
    "wrapped": ("my/data/", "my/data/"), "unzipped twice": ("train/", "test/"),
    "one more folder": ("dataset/", "dataset/"),
    "beside other things": ("data/", "data/"),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_folders_around_the_parts_are_looked_through(tmp_path, case):
    first, second = LAYOUTS[case]
    names = [f"{first}train/{name}" for name in SPLIT] + [f"{second}test/b/4"]
    if case == "beside other things":
        (tmp_path / "docs/figures").mkdir(parents=True)
    data = load("imagefolder", tree(tmp_path, *names))
    assert data.classes == ("a", "b") and seen(data.test) == [(40, 1)]


@pytest.mark.parametrize("base", ["", "train/", "wrapped/", "pictures/flowers/"])
def test_without_a_test_part_a_fixed_share_is_taken_for_it(tmp_path, capsys, base):
    tree(tmp_path, *(f"{base}{name}/{i}" for name in "ab" for i in range(10)))
    data = load("imagefolder", tmp_path)
    assert len(data.clean.labels) == 16 and data.test.labels.bincount().tolist() == [2, 2]
    assert "4 of its 20 images are the test part" in capsys.readouterr().out
    again = load("imagefolder", tmp_path)
    assert seen(again.test) == seen(data.test)
    assert len(load("imagefolder", tmp_path, test_fraction=0.5).test.labels) == 10


@pytest.mark.parametrize("junk", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", ".hidden"])
@pytest.mark.parametrize("place", ["", "train/", "test/"])
def test_folders_of_systems_are_no_classes(tmp_path, junk, place):
    tree(tmp_path, *(f"train/{name}" for name in SPLIT), "test/b/4", f"{place}{junk}/5")
    data = load("imagefolder", tmp_path)
    assert data.classes == ("a", "b") and len(data.clean.labels) == 4


@pytest.mark.parametrize("junk", [".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN"])
def test_folders_of_systems_within_a_class_hold_no_images(tmp_path, junk):
    tree(tmp_path, *(f"train/{name}" for name in SPLIT), "test/b/4", f"train/a/{junk}/5")
    assert len(load("imagefolder", tmp_path).clean.labels) == 4


def test_a_class_may_be_called_train(tmp_path):
    tree(tmp_path, *(f"{name}/{i}" for name in ("bus", "train", "test") for i in range(5)))
    data = load("imagefolder", tmp_path)
    assert data.classes == ("bus", "test", "train") and len(data.test.labels) == 3


@pytest.mark.parametrize("test", ["test/0", "test/more"])
def test_a_test_folder_without_classes_gives_way_to_a_validation_part(tmp_path, test):
    tree(tmp_path, *(f"train/{name}" for name in SPLIT), "val/b/4", test)
    assert seen(load("imagefolder", tmp_path).test) == [(40, 1)]


def test_a_validation_part_beside_a_test_part_is_said_to_be_unused(tmp_path, capsys):
    tree(tmp_path, *(f"train/{name}" for name in SPLIT), "test/b/4", "valid/a/5")
    assert seen(load("imagefolder", tmp_path).test) == [(40, 1)]
    assert f"{tmp_path / 'valid'} is not used" in capsys.readouterr().out


ENDINGS = {"jfif": "JPEG", "jpe": "JPEG", "gif": "GIF", "jp2": "JPEG2000", "tga": "TGA",
           "dib": "DIB", "apng": "PNG", "JPG": "JPEG"}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_raster_format_is_read(tmp_path, ending):
    tree(tmp_path, *(f"train/{name}" for name in SPLIT), "test/b/4")
    Image.new("RGB", (8, 8), (90,) * 3).save(tmp_path / f"test/a.{ending}", ENDINGS[ending])
    (tmp_path / "test/a").mkdir()
    (tmp_path / f"test/a.{ending}").rename(tmp_path / f"test/a/0.{ending}")
    assert (90, 0) in seen(load("imagefolder", tmp_path).test)


def test_what_is_left_out_is_said_when_training_begins(tmp_path, capsys):
    tree(tmp_path, *(f"train/{name}" for name in SPLIT), "test/b/4")
    for name in ("x.heic", "y.HEIC", "notes.txt"):
        (tmp_path / "train/a" / name).write_bytes(b"x")
    load("imagefolder", tmp_path)
    said = capsys.readouterr().out
    assert "are left out: 2 .heic, 1 .txt; .heic needs a plug-in" in said


def test_a_picture_is_turned_as_the_camera_was_held(tmp_path):
    tree(tmp_path, *(f"train/{name}" for name in SPLIT), "test/b/4")
    image = Image.new("RGB", (8, 8))
    image.paste((255,) * 3, (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[274] = 3  # held upside down
    (tmp_path / "test/a").mkdir()
    image.save(tmp_path / "test/a/0.jpg", exif=exif, quality=95)
    (x, y) = next(load("imagefolder", tmp_path).test.batches())
    shown = x[int((y == 0).nonzero())]
    assert shown[:, :3].mean() < 0.1 and shown[:, 5:].mean() > 0.9


def test_one_class_and_classes_of_one_image_are_noted(tmp_path):
    tree(tmp_path, "one/train/a/0", "one/train/a/1", "one/test/a/2")
    assert load("imagefolder", tmp_path / "one").notes == ("there is one class only, a",)
    tree(
        tmp_path, "few/train/a/0", "few/train/a/1", "few/train/b/2", "few/test/a/3", "few/test/b/4"
    )
    notes = load("imagefolder", tmp_path / "few").notes
    assert notes == ("classes with one training image: 1 (b)",)


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


def test_tiny_imagenet_raw_with_the_folders_of_test_and_boxes_beside_it(tmp_path):
    base = tiny(tmp_path, ["images/val_0", "images/val_1", "images/val_2"])
    tree(base, "test/images/test_0")
    text(base / "train" / "n01" / "n01_boxes.txt", "n01_0.png\t0\t0\t9\t9")
    text(base / "words.txt", "n01\tgoldfish", "n02\tshark")
    text(
        base / "val" / "val_annotations.txt",
        "val_2.png\tn01\t0\t0\t9\t9",
        "val_0.png\tn02\t0\t0\t9\t9",
        "val_1.png\tn01\t0\t0\t9\t9",
    )
    data = load("tiny_imagenet", tmp_path)
    assert data.clean.images == 2
    assert seen(data.test) == [(20, 1), (30, 0), (40, 0)]


def test_tiny_imagenet_half_sorted_is_refused(tmp_path):
    base = tiny(tmp_path, ["images/n01/v0", "images/v1"])
    text(base / "val" / "val_annotations.txt", "v0.png\tn01\t0\t0\t9\t9", "v1.png\tn02\t0\t0\t9\t9")
    with pytest.raises(DataError, match="lacks 1 images .*v0.png"):
        load("tiny_imagenet", tmp_path)


def test_tiny_imagenet_taken_for_an_imagefolder_is_refused(tmp_path):
    base = tiny(tmp_path)
    with pytest.raises(DataError, match=r"has class folders .*\(images\)"):
        load("imagefolder", base)


@pytest.mark.parametrize("test", [(), ("test/images/test_0",)])
def test_tiny_imagenet_as_it_is_distributed_is_sent_to_its_own_name(tmp_path, test):
    base = tree(tiny(tmp_path), *test)
    text(base / "val" / "val_annotations.txt", "v0.png\tn02", "v1.png\tn01")
    fix = f"{base} is Tiny-ImageNet as it is distributed: use --dataset tiny_imagenet"
    with pytest.raises(DataError, match=f"^{re.escape(fix)}$"):
        load("imagefolder", base)


def test_tiny_imagenet_sorted_beside_its_annotations_can_be_an_imagefolder(tmp_path):
    base = tiny(tmp_path, ["n02/v0", "n01/v1"])
    text(base / "val" / "val_annotations.txt", "v0.png\tn02", "v1.png\tn01")
    assert seen(load("imagefolder", base).test) == [(20, 1), (30, 0)]


def test_tiny_imagenet_with_annotations_cut_at_the_end_of_a_line_is_refused(tmp_path):
    base = tiny(tmp_path, [f"images/v{i}" for i in range(4)])
    listed = base / "val" / "val_annotations.txt"
    text(listed, "v0.png\tn02", "v1.png\tn01")
    wrong = f"{listed} does not name 2 images of {base / 'val' / 'images'} (v2.png): extract"
    with pytest.raises(DataError, match=f"^{re.escape(wrong)} the archive again$"):
        load("tiny_imagenet", tmp_path)


def test_tiny_imagenet_with_files_beside_its_images_that_are_none_is_read(tmp_path):
    base = tiny(tmp_path)
    text(base / "val" / "val_annotations.txt", "v0.png\tn02", "v1.png\tn01")
    for name in ("._v0.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        text(base / "val" / "images" / name, "no image")
    assert load("tiny_imagenet", tmp_path).test.images == 2


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
