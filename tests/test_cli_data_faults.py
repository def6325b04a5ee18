"""Damaged and odd images on the command line: `--check_data`, `--bad_images`, changed data."""

import json
import os
import shutil
import signal

import pytest
import torch
from cli import (
    SMALL,
    at_call,
    call,
    files,
    forked,
    hashes,
    meta,
    only_run,
    plain_pictures,
    run,
    send,
)
from PIL import Image
from test_data_specs import cifar, write_idx
from torchvision import datasets

from data import faults
from data.picture import examine
from models.classifier import PromptedClassifier
from program import data_check, record

QUICK = ["--density_list", "0.1", "--eval_every", 0, "--input_size", 4, "--output_size", 4]
BAD = {
    "torn.jpg": "truncated",
    "empty.png": "zero bytes",
    "text.jpg": "no image",
    "float.tif": "floating-point pixels of unknown range",
}
ODD = {
    "cmyk.jpg": ("CMYK", "CMYK, converted without a colour profile"),
    "rgba.png": ("RGBA", "transparency, which is dropped"),
    "palette.png": ("P", "palette, replaced by its colours"),
    "deep.png": ("I;16", "16 bits a channel, of which the upper 8 are kept"),
    "grey.jpg": ("L", "greyscale"),
    "dot.png": ("RGB", "one pixel wide or high"),
}


@pytest.fixture(autouse=True)
def plain_picture(monkeypatch):
    monkeypatch.setattr(record, "draw_run", plain_pictures)


def noise(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (9, 8, 3), generator=rng)
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)


def photos(root, *bad):
    """12 images to train on, 4 to test, in two classes; the bad ones among the first class."""
    for i in range(16):
        noise(root / ("train" if i < 12 else "test") / "ab"[i % 2] / f"m{i:02}.jpg", i)
    whole = (root / "train" / "a" / "m00.jpg").read_bytes()
    folder = root / "train" / "a"
    damaged = {"torn.jpg": whole[: len(whole) * 3 // 4], "empty.png": b"", "text.jpg": b"no" * 99}
    for name in bad:
        if name in damaged:
            (folder / name).write_bytes(damaged[name])
        else:
            Image.new("F", (8, 8), 0.5).save(folder / name)
    return root


def check(root, *words):
    return call("--check_data", "--dataset", "imagefolder", "--data", root, *SMALL[:4], "--workers",
                0, *words)  # fmt: skip


def reported(done):
    """The values of the RESULT line, the last on stdout whatever the exit code."""
    return json.loads(done.out.splitlines()[-1].removeprefix("RESULT "))


def train(save_dir, root, *words):
    return run(save_dir, "--dataset", "imagefolder", "--data", root, "--train_images", 0,
               "--batch_size", 4, *QUICK, *words)  # fmt: skip


# --check_data


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    root = photos(tmp_path_factory.mktemp("messy"), *BAD)
    for name, (mode, _) in ODD.items():
        side = 1 if name == "dot.png" else 8
        Image.new(mode, (side, side)).save(root / "train" / "b" / name)
    return root


@pytest.fixture(scope="module")
def checked(messy):
    return check(messy)


def test_check_exits_with_4_and_the_last_line_names_the_first_bad_image(checked, messy):
    assert checked.code == 4
    assert checked.error == (
        f"4 images cannot be read, the first {messy}/train/a/empty.png (zero bytes): "
        "get them again, or leave them out with --bad_images skip"
    )


@pytest.mark.parametrize("name", BAD)
def test_check_lists_what_cannot_be_read_with_its_reason(checked, messy, name):
    path = str(messy / "train" / "a" / name)
    assert BAD[name] in reported(checked)["splits"]["train"]["unreadable"][path]
    assert any(path in line and BAD[name] in line for line in checked.out.splitlines()[:-1])


@pytest.mark.parametrize("name", ODD)
def test_check_lists_what_is_converted(checked, messy, name):
    path, kind = str(messy / "train" / "b" / name), ODD[name][1]
    assert reported(checked)["splits"]["train"]["odd"][kind] == [path]
    assert f"  {kind}: 1 ({path})" in checked.out.splitlines()


def test_check_counts_images_and_classes_of_each_split(checked, messy):
    splits = reported(checked)["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {"train": 22, "test": 4}
    assert splits["train"]["counts"] == {"a": 10, "b": 12}
    assert f"train: 22 images, {messy}/train (16 .jpg, 5 .png, 1 .tif)" in checked.out
    assert "  2 classes of 10 to 12 images: a 10, b 12" in checked.out


def test_check_shows_the_layout(checked, messy):
    assert checked.out.startswith(f"imagefolder in {messy}: found train, test\n")


def test_check_measures_an_epoch_of_what_can_be_read(checked):
    epoch = reported(checked)["epoch"]
    assert (epoch["images"], epoch["measured"], epoch["workers"]) == (18, 18, 0)
    assert epoch["size"] == 16 and epoch["seconds"] > 0


def test_check_with_workers_finds_the_same(checked, messy):
    again = reported(check(messy, "--workers", 2))
    assert again.pop("epoch")["workers"] == 2
    assert again.items() <= reported(checked).items()


def test_odd_images_alone_can_be_trained_on(tmp_path):
    root = photos(tmp_path)
    Image.new("CMYK", (8, 8)).save(root / "train" / "a" / "cmyk.jpg")
    done = check(root)
    assert done.result["trainable"] and not done.err


def test_bad_images_that_are_left_out_are_no_error(messy):
    done = check(messy, "--bad_images", "skip")
    assert done.result["trainable"] and len(done.result["splits"]["train"]["unreadable"]) == 4


def test_many_faults_are_shortened_in_print_and_whole_in_the_result(tmp_path):
    root = photos(tmp_path)
    for i in range(33):
        (root / "train" / "b" / f"zero{i:02}.jpg").write_bytes(b"")
        Image.new("L", (8, 8)).save(root / "train" / "b" / f"l{i:02}.png")
    done = check(root)
    split = reported(done)["splits"]["train"]
    assert len(split["unreadable"]) == len(split["odd"]["greyscale"]) == 33
    assert done.out.count("zero bytes\n") == 20 and "    and 13 more, listed in RESULT" in done.out
    assert "l02.png and 30 more)" in done.out


def test_check_of_test_images_counts_too(tmp_path):
    root = photos(tmp_path)
    (root / "test" / "a" / "m12.jpg").write_bytes(b"")
    done = check(root)
    assert done.code == 4 and "m12.jpg (zero bytes)" in done.error


def test_check_names_classes_without_an_image(tmp_path):
    root = photos(tmp_path)
    for split in ("train", "test"):
        (root / split / "aa").mkdir()
    done = check(root)
    assert done.result["splits"]["train"]["counts"] == {"a": 6, "aa": 0, "b": 6}
    assert "classes without an image, which keep their place: 1 (aa)" in done.out


def test_check_counts_files_that_are_not_used(tmp_path):
    root = photos(tmp_path)
    (root / "train" / "heic").mkdir()
    for name in ("train/a/1.heic", "train/heic/2.heic", "test/b/notes.txt", "test/b/.hidden"):
        (root / name).write_bytes(b"x")
    done = check(root)
    assert done.result["unused"] == {".heic": 2, ".txt": 1}
    assert "files beside the images that are not used: 2 .heic, 1 .txt" in done.out.splitlines()


def test_layout_that_is_refused_is_the_one_error_line(tmp_path):
    root = photos(tmp_path)
    noise(root / "test" / "c" / "m.png", 99)
    done = check(root)
    assert done.code == 4 and not done.out and "(c): make their names agree" in done.error


def test_check_when_nothing_can_be_read(tmp_path):
    root = photos(tmp_path)
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"")
    done = check(root, "--bad_images", "skip")
    assert done.code == 4 and done.error.endswith("has no training images")
    assert reported(done)["epoch"] is None


def test_check_fetches_nothing_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("--check_data", "--dataset", "mnist", *SMALL[:4])
    assert done.code == 4 and "mnist not found" in done.error
    check(photos(tmp_path / "photos"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_check_of_names_that_are_no_utf_8(tmp_path):
    root = photos(tmp_path)
    (root / "train" / "a" / "\udcff.jpg").write_bytes(b"")
    assert "\\udcff.jpg (zero bytes)" in check(root).error


def test_signal_during_the_check_ends_it_with_75(tmp_path):
    root = photos(tmp_path / "photos")
    words = ["--check_data", "--dataset", "imagefolder", "--data", root, "--workers", 1]
    hook = (faults, "examine", 1, send("SIGTERM"), False)
    done = forked(tmp_path / "run", *words, before=lambda: at_call(*hook))
    assert done.code == 75 and done.error.startswith("stopped by SIGTERM") and not done.out


# --check_data of arrays


def array_check(name, *words):
    return call("--check_data", *SMALL[:4], "--dataset", name, *words).result


def test_check_of_digits():
    splits = array_check("digits")["splits"]
    assert [split["images"] for split in splits.values()] == [1437, 360]
    assert splits["test"]["source"] == "arrays of 8 x 8, grey"
    assert sum(splits["train"]["counts"].values()) == 1437 and not splits["train"]["unreadable"]


def test_check_of_idx_files(tmp_path):
    write_idx(tmp_path, zipped=True)
    found = array_check("mnist", "--data", tmp_path)
    assert found["found"] == ["train-images-idx3-ubyte.gz"] and found["folder"] == str(tmp_path)
    counts = found["splits"]["train"]["counts"]
    assert {name: count for name, count in counts.items() if count} == {"1": 1, "2": 1, "3": 1}


def test_check_of_cifar(tmp_path, monkeypatch):
    base = tmp_path / "cifar-10-batches-py"
    cifar(datasets.CIFAR10, base, monkeypatch, "labels", ["plane", "car"])
    found = array_check("cifar10", "--data", tmp_path)
    assert found["splits"]["train"]["counts"] == {"plane": 5, "car": 5}
    assert found["splits"]["train"]["source"] == "arrays of 32 x 32, RGB"


def test_long_epoch_is_extrapolated_and_says_so(monkeypatch):
    monkeypatch.setattr(data_check, "BUDGET", 0)
    done = call("--check_data", *SMALL[:4], "--dataset", "digits")
    assert done.result["epoch"]["measured"] == 128
    assert "1,437 training images" in done.out and "extrapolated from 128" in done.out


# Training: unreadable images stop it, or are left out


@pytest.mark.parametrize(("workers", "cache_gb"), [(0, 0), (0, 1), (2, 0), (2, 1)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_training_stops_at_an_unreadable_image(tmp_path, split, workers, cache_gb):
    root = photos(tmp_path / "photos", "torn.jpg")
    if split == "test":
        (root / "train" / "a" / "torn.jpg").rename(root / "test" / "a" / "torn.jpg")
    done = train(tmp_path / "run", root, "--batch_size", 5, "--workers", workers,
                 "--cache_gb", cache_gb)  # fmt: skip
    path = root / split / "a" / "torn.jpg"
    assert done.code == 4
    assert done.error.startswith(f"cannot read the image {path} (truncated): ")
    assert done.error.endswith("--bad_images skip (--check_data lists them)")
    state = json.loads((only_run(tmp_path / "run") / "run.json").read_text())
    assert state["state"] == "failed" and state["reason"] == done.error


def test_evaluation_stops_at_an_unreadable_image(tmp_path):
    root = photos(tmp_path / "photos")
    model = train(tmp_path / "run", root).folder / "d0.1" / "model.safetensors"
    (root / "test" / "a" / "m12.jpg").write_bytes(b"")
    words = ["--evaluate", model, "--dataset", "imagefolder", "--data", root]
    done = call(*words)
    assert done.code == 4 and "m12.jpg (zero bytes)" in done.error
    left = call(*words, "--bad_images", "skip").result
    assert left["images"] == 3 and "1 (" in left["notes"][-1] and "m12.jpg" in left["notes"][-1]


@pytest.fixture(scope="module")
def skipped(messy, tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"), messy, "--bad_images", "skip")


def test_images_left_out_are_counted_and_named_on_start_and_in_the_log(skipped, messy):
    a = messy / "train" / "a"
    line = (
        "note: images that cannot be read and are left out: "
        f"4 ({a}/empty.png, {a}/float.tif, {a}/text.jpg and 1 more)"
    )
    assert line in skipped.out.splitlines()
    assert line in (skipped.folder / "log.txt").read_text()


@pytest.mark.parametrize(("workers", "cache_gb"), [(0, 0), (2, 0), (2, 1)])
def test_left_out_images_are_the_same_with_any_workers_and_cache(skipped, messy, tmp_path,
                                                                 workers, cache_gb):
    words = ["--bad_images", "skip", "--workers", workers, "--cache_gb", cache_gb]
    assert hashes(train(tmp_path, messy, *words).folder) == hashes(skipped.folder)


def test_left_out_images_are_as_if_they_had_never_been_there(skipped, messy, tmp_path):
    clean = tmp_path / "clean"
    shutil.copytree(messy, clean)
    for name in BAD:
        (clean / "train" / "a" / name).unlink()
    done = train(tmp_path / "run", clean, "--bad_images", "skip")
    assert hashes(done.folder) == hashes(skipped.folder) and "left out" not in done.out


def test_leaving_images_out_makes_another_run(skipped, messy):
    stopped = train(skipped.folder.parents[2], messy)
    assert stopped.code == 4
    assert "a new run; the nearest one" in stopped.out
    assert f"{skipped.folder.name}, differs in: bad_images skip -> stop" in stopped.out


# Files that are none: a pipe that nobody writes into, a link that leads nowhere


SPECIAL = {
    "no regular file": os.mkfifo,
    "No such file or directory": lambda path: path.symlink_to("gone.png"),
}


@pytest.fixture(params=SPECIAL)
def special(request, tmp_path):
    """Images of which one is none, its path and why; a test that waits for it fails."""
    def waited(*_):
        pytest.fail("waited for the pipe")

    root = photos(tmp_path / "photos")
    path = root / "train" / "a" / "special.png"
    SPECIAL[request.param](path)
    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(60)
    yield root, path, request.param
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("workers", [0, 1])
def test_check_lists_what_is_no_file(special, workers):
    root, path, why = special
    done = check(root, "--workers", workers)
    assert done.code == 4 and f"{path} ({why})" in done.error


def test_training_stops_at_what_is_no_file_and_says_how_to_go_on(special, tmp_path):
    root, path, why = special
    done = train(tmp_path / "run", root)
    assert done.code == 4 and done.error.startswith(f"cannot read the image {path} ({why}): ")
    assert done.error.endswith("--bad_images skip (--check_data lists them)")


def test_what_is_no_file_can_be_left_out(special, tmp_path):
    root, path, _ = special
    done = train(tmp_path / "run", root, "--bad_images", "skip")
    assert f"note: images that cannot be read and are left out: 1 ({path})" in done.out
    path.unlink()
    clean = train(tmp_path / "clean", root, "--bad_images", "skip")
    assert hashes(clean.folder) == hashes(done.folder)


# Classes without an image


def test_classes_without_test_images_are_noted_by_training_and_evaluation(tmp_path):
    root = photos(tmp_path / "photos")
    shutil.rmtree(root / "test" / "b")
    done = train(tmp_path / "run", root)
    line = "classes without test images: 1 of 2 (b)"
    assert f"note: {line}" in done.out.splitlines()
    assert line in (done.folder / "log.txt").read_text()
    model = done.folder / "d0.1" / "model.safetensors"
    again = call("--evaluate", model, "--dataset", "imagefolder", "--data", root)
    assert again.result["notes"] == [line]


def test_when_no_training_image_can_be_read_there_is_nothing_to_skip_to(tmp_path):
    root = photos(tmp_path / "photos")
    for path in (root / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    done = train(tmp_path / "run", root, "--bad_images", "skip")
    assert done.code == 4 and "imagefolder, without what cannot be read, has no" in done.error


def test_class_without_training_images_keeps_its_column(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "train" / "aa").mkdir()
    folder = train(tmp_path / "run", root).folder
    assert len(set(meta(folder / "d0.1" / "model.safetensors")["label_map"])) == 3


# Data that change between a stop and the next start


def stopped_run(save_dir, root):
    hook = (PromptedClassifier, "forward", 6, send("SIGTERM"), False)
    words = ["--dataset", "imagefolder", "--data", root, "--train_images", 0, "--batch_size", 4]
    done = forked(save_dir, *words, *QUICK, before=lambda: at_call(*hook))
    assert done.code == 75
    return only_run(save_dir)


def changed(path):
    """A bit of the pixels of a JPEG becomes another; it can be read and is as large as before."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert examine(path)[0] == ""


CHANGES = {
    "another image of the same size": lambda a: changed(a / "m02.jpg"),
    "another image": lambda a: noise(a / "m00.jpg", 77),
    "one image more": lambda a: noise(a / "new.jpg", 77),
    "one image less": lambda a: (a / "m02.jpg").unlink(),
    "another class": lambda a: shutil.copy(a / "m00.jpg", a.parent / "b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_stopped_run_does_not_go_on_with_changed_images(tmp_path, change):
    root = photos(tmp_path / "photos")
    folder = stopped_run(tmp_path / "run", root)
    before = files(folder)
    CHANGES[change](root / "train" / "a")
    again = train(tmp_path / "run", root)
    assert again.code == 4
    assert again.error.startswith(f"the images are not those that {folder} began with: put them")
    assert files(folder) == before


def test_state_alone_tells_that_the_images_have_changed(tmp_path):
    root = photos(tmp_path / "photos")
    (stopped_run(tmp_path / "run", root) / "env.json").unlink()
    (root / "train" / "a" / "m02.jpg").unlink()
    again = train(tmp_path / "run", root)
    assert again.code == 4 and "the images are not those" in again.error


def test_stopped_run_goes_on_when_the_images_are_put_back(tmp_path):
    root = photos(tmp_path / "photos")
    stopped_run(tmp_path / "run", root)
    moved = (root / "train" / "a" / "m00.jpg").rename(tmp_path / "aside.jpg")
    assert train(tmp_path / "run", root).code == 4
    moved.rename(root / "train" / "a" / "m00.jpg")
    straight = train(tmp_path / "straight", root)
    assert hashes(train(tmp_path / "run", root).folder) == hashes(straight.folder)


def test_left_out_image_that_was_repaired_is_a_change(tmp_path):
    root = photos(tmp_path / "photos", "torn.jpg")
    words = ["--bad_images", "skip"]
    train(tmp_path / "run", root, *words)
    noise(root / "train" / "a" / "torn.jpg", 77)
    again = train(tmp_path / "run", root, *words, "--density_list", "0.2,0.1")
    assert again.code == 4 and "the images are not those" in again.error
