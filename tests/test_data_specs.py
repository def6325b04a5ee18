"""Every dataset, read from a tiny tree in its true layout with hand-checked labels and counts.

The colour of a picture names its place in the tree, so that a label can be checked against the
pixels it came with.
"""

import gzip
import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from data import SPECS, DataConfig, load_data
from utils.errors import DataError

CPU = torch.device("cpu")
FASHION = Path("/usr/share/datasets/fashion-mnist")


def picture(path, value, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path, quality=95)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def load(name, root, **flags):
    flags = {"workers": 0, "download": False, "data": str(root), **flags}
    return load_data(DataConfig(dataset=name, **flags), input_size=8, batch_size=100, device=CPU)


def seen(view):
    """Sorted (mean grey value, label) of every image of a view."""
    return sorted(
        (round(float(image.mean() * 255)), int(label))
        for x, y in view.batches(0)
        for image, label in zip(x, y, strict=True)
    )


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pickled(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return [path.name, md5(path)]


def rows(*values):
    return np.stack([np.full(3072, value, dtype=np.uint8) for value in values])


def cifar(kind, base, monkeypatch, labels, classes):
    names = [name for name, _ in kind.train_list]
    train = [pickled(base / name, {"data": rows(10 + i, 20 + i), labels: [0, 1]})
             for i, name in enumerate(names)]
    test = [pickled(base / kind.test_list[0][0], {"data": rows(90), labels: [1]})]
    meta = pickled(base / kind.meta["filename"], {kind.meta["key"]: classes})
    monkeypatch.setattr(kind, "train_list", train)
    monkeypatch.setattr(kind, "test_list", test)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta[1]})


def test_cifar10(tmp_path, monkeypatch):
    base = tmp_path / "cifar10" / "cifar-10-batches-py"
    cifar(datasets.CIFAR10, base, monkeypatch, "labels", ["plane", "car"])
    data = load("cifar10", tmp_path)
    assert seen(data.prompted) == [(10 + i, 0) for i in range(5)] + [(20 + i, 1) for i in range(5)]
    assert seen(data.test) == [(90, 1)]
    assert data.classes == ("plane", "car")


def test_cifar10_keeps_the_channels_in_order(tmp_path, monkeypatch):
    base = tmp_path / "cifar-10-batches-py"
    cifar(datasets.CIFAR10, base, monkeypatch, "labels", ["plane", "car"])
    red = np.repeat(np.array([[200, 100, 50]], dtype=np.uint8), 1024, axis=1)
    test = pickled(base / "test_batch", {"data": red, "labels": [0]})
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [test])
    x, _ = next(load("cifar10", tmp_path).test.batches())
    assert (x[0].mean((1, 2)) * 255).round().tolist() == [200, 100, 50]


def test_cifar100(tmp_path, monkeypatch):
    base = tmp_path / "cifar100" / "cifar-100-python"
    cifar(datasets.CIFAR100, base, monkeypatch, "fine_labels", ["apple", "fish"])
    data = load("cifar100", tmp_path)
    assert seen(data.prompted) == [(10, 0), (20, 1)] and seen(data.test) == [(90, 1)]


def test_cifar_with_a_wrong_md5_names_the_file(tmp_path, monkeypatch):
    base = tmp_path / "cifar-10-batches-py"
    cifar(datasets.CIFAR10, base, monkeypatch, "labels", ["plane", "car"])
    (base / "data_batch_3").write_bytes(b"not a pickle")
    with pytest.raises(DataError, match=r"data_batch_3 is damaged \(wrong MD5"):
        load("cifar10", tmp_path)


def test_svhn_calls_the_digit_ten_zero(tmp_path, monkeypatch):
    from scipy.io import savemat

    listed = {}
    for split, values in (("train", [10, 20]), ("test", [90])):
        path = tmp_path / "svhn" / f"{split}_32x32.mat"
        path.parent.mkdir(exist_ok=True)
        pixels = np.stack([np.full((32, 32, 3), v, np.uint8) for v in values], axis=3)
        savemat(path, {"X": pixels, "y": np.array([[10], [3]][: len(values)], np.uint8)})
        listed[split] = ["url", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    data = load("svhn", tmp_path)
    assert seen(data.prompted) == [(10, 0), (20, 3)] and seen(data.test) == [(90, 0)]


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, zipped):
    folder.mkdir(parents=True, exist_ok=True)
    for split, values in (("train", [10, 20, 30]), ("t10k", [90])):
        images = np.stack([np.full((28, 28), v, np.uint8) for v in values])
        labels = np.array([v // 10 for v in values], np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            name = f"{split}-{kind}-ubyte" + (".gz" if zipped else "")
            (folder / name).write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "name, folder",
    [("fashion_mnist", "fashion_mnist/FashionMNIST/raw"), ("fashion_mnist", "FashionMNIST/raw"),
     ("fashion_mnist", "."), ("mnist", "mnist/MNIST/raw"), ("mnist", "mnist")],
)  # fmt: skip
def test_idx_files_in_every_layout(tmp_path, name, folder, zipped):
    write_idx(tmp_path / folder, zipped)
    data = load(name, tmp_path)
    assert seen(data.prompted) == [(10, 1), (20, 2), (30, 3)] and seen(data.test) == [(90, 9)]
    assert len(data.classes) == 10


def test_truncated_gz_names_the_file(tmp_path):
    write_idx(tmp_path, zipped=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz"):
        load("fashion_mnist", tmp_path)


def test_short_idx_names_the_file(tmp_path):
    write_idx(tmp_path, zipped=False)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is damaged"):
        load("fashion_mnist", tmp_path)


def test_idx_with_more_images_than_labels_is_refused(tmp_path):
    write_idx(tmp_path, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(2, np.uint8)))
    with pytest.raises(DataError, match="1 images but .* 2 labels"):
        load("mnist", tmp_path)


def test_missing_idx_file_is_named(tmp_path):
    write_idx(tmp_path, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has no t10k-labels-idx1-ubyte"):
        load("mnist", tmp_path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="the Debian package of Fashion-MNIST is not here")
def test_real_fashion_mnist():
    data = load("fashion_mnist", FASHION)
    assert (data.clean.images, data.test.images) == (60_000, 10_000)
    assert data.clean.labels.bincount().tolist() == [6_000] * 10
    assert data.test.labels[:4].tolist() == [9, 2, 1, 1]


def test_dtd_trains_on_train_and_val_of_partition_1(tmp_path):
    base = tmp_path / "dtd" / "dtd" / "dtd"
    for i, (split, cls) in enumerate([("train", "dotted"), ("val", "banded"), ("test", "dotted")]):
        picture(base / "images" / cls / f"{cls}_{i}.jpg", 10 * i)
        text(base / "labels" / f"{split}1.txt", f"{cls}/{cls}_{i}.jpg")
        text(base / "labels" / f"{split}2.txt", "zigzagged/none.jpg")
    data = load("dtd", tmp_path)
    assert data.classes == ("banded", "dotted")
    assert seen(data.prompted) == [(0, 1), (10, 0)] and seen(data.test) == [(20, 1)]


def food(base, test_class="pie"):
    lists = {"train": {"apple": ["apple/1"], "pie": ["pie/2"]}, "test": {test_class: ["pie/3"]}}
    for split, listed in lists.items():
        text(base / "meta" / f"{split}.json", json.dumps(listed))
    for name in ("apple/1", "pie/2", "pie/3"):
        picture(base / "images" / f"{name}.jpg", 10 * int(name[-1]))


def test_food101_numbers_test_classes_as_in_training(tmp_path):
    food(tmp_path / "food101" / "food-101")
    data = load("food101", tmp_path)
    assert seen(data.prompted) == [(10, 0), (20, 1)] and seen(data.test) == [(30, 1)]


def test_food101_with_a_test_class_unknown_in_training_is_refused(tmp_path):
    food(tmp_path / "food-101", test_class="soup")
    with pytest.raises(DataError, match="soup"):
        load("food101", tmp_path)


def test_food101_with_a_broken_list_is_a_data_error(tmp_path):
    food(tmp_path / "food-101")
    (tmp_path / "food-101" / "meta" / "test.json").write_text('{"pie": [')
    with pytest.raises(DataError, match="food101 in .* is damaged"):
        load("food101", tmp_path)


def test_oxfordpets_labels_start_at_one_in_the_lists(tmp_path):
    base = tmp_path / "oxfordpets" / "oxford-iiit-pet"
    for i, name in enumerate(["Abyssinian_1", "great_pyrenees_2", "Abyssinian_3"]):
        picture(base / "images" / f"{name}.jpg", 10 * i)
    text(base / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1", "great_pyrenees_2 2 2 1")
    text(base / "annotations" / "test.txt", "Abyssinian_3 1 1 1")
    data = load("oxfordpets", tmp_path)
    assert data.classes == ("Abyssinian", "Great Pyrenees")
    assert seen(data.prompted) == [(0, 0), (10, 1)] and seen(data.test) == [(20, 0)]


@pytest.mark.parametrize("absent", [1, 2, 3])
def test_oxfordpets_with_a_class_missing_in_training_is_refused(tmp_path, absent):
    base = tmp_path / "oxford-iiit-pet"
    rows = [f"{name}_{i} {i} 1 1" for i, name in enumerate(["Abby", "Beagle", "Chow"], start=1)]
    for row in rows:
        picture(base / "images" / f"{row.split()[0]}.jpg", 10)
    text(base / "annotations" / "test.txt", *rows)
    text(base / "annotations" / "trainval.txt", *rows[: absent - 1], *rows[absent:])
    with pytest.raises(DataError, match="labels outside its 2 classes: get it again from"):
        load("oxfordpets", tmp_path)


def test_a_class_missing_in_test_keeps_the_numbers_of_dtd(tmp_path):
    base = tmp_path / "dtd" / "dtd"
    names = [("train", "banded"), ("val", "dotted"), ("train", "woven"), ("test", "woven")]
    lists = {"train": [], "val": [], "test": []}
    for i, (split, cls) in enumerate(names):
        picture(base / "images" / cls / f"{cls}_{i}.jpg", 10 * i)
        lists[split].append(f"{cls}/{cls}_{i}.jpg")
    for split, listed in lists.items():
        text(base / "labels" / f"{split}1.txt", *listed)
    data = load("dtd", tmp_path)
    assert data.classes == ("banded", "dotted", "woven") and seen(data.test) == [(30, 2)]


def test_flowers102_whose_parts_number_the_classes_differently_is_refused(tmp_path):
    (tmp_path / "jpg").mkdir()
    lists = {"train": [["1.jpg", 0, "lily"], ["2.jpg", 1, "rose"]], "val": [],
             "test": [["3.jpg", 0, "rose"], ["4.jpg", 1, "lily"]]}
    text(tmp_path / "split_zhou_OxfordFlowers.json", json.dumps(lists))
    with pytest.raises(DataError, match="gives one class two names"):
        load("flowers102", tmp_path)


def test_flowers102_trains_on_coops_train_and_val(tmp_path):
    base = tmp_path / "flowers102"
    for i in range(4):
        picture(base / "jpg" / f"image_{i:05}.jpg", 10 * i)
    lists = {"train": [["image_00000.jpg", 1, "rose"]], "val": [["image_00001.jpg", 0, "lily"]],
             "test": [["image_00002.jpg", 1, "rose"], ["image_00003.jpg", 0, "lily"]]}
    text(base / "split_zhou_OxfordFlowers.json", json.dumps(lists))
    data = load("flowers102", tmp_path)
    assert data.classes == ("lily", "rose")
    assert seen(data.prompted) == [(0, 1), (10, 0)] and seen(data.test) == [(20, 1), (30, 0)]


def test_flowers102_with_a_broken_split_names_the_file(tmp_path):
    (tmp_path / "jpg").mkdir()
    text(tmp_path / "split_zhou_OxfordFlowers.json", '{"train": []}')
    with pytest.raises(DataError, match="split_zhou_OxfordFlowers.json is damaged"):
        load("flowers102", tmp_path)


def test_flowers102_official_trains_on_its_train_and_val(tmp_path, monkeypatch):
    from scipy.io import savemat

    base = tmp_path / "flowers102_official" / "flowers-102"
    for i in (1, 2, 3):
        picture(base / "jpg" / f"image_{i:05}.jpg", 10 * i)
    savemat(base / "setid.mat", {"trnid": [[1, 1]], "valid": [[2, 2]], "tstid": [[3, 3]]})
    savemat(base / "imagelabels.mat", {"labels": [[5, 102, 1]]})
    sums = {key: (name, "" if key == "image" else md5(base / name))
            for key, (name, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", sums)
    data = load("flowers102_official", tmp_path)
    assert len(data.classes) == 102
    assert seen(data.prompted) == [(10, 4)] * 2 + [(20, 101)] * 2
    assert seen(data.test) == [(30, 0)] * 2


def test_stanfordcars_in_the_kaggle_tree(tmp_path):
    base = tmp_path / "stanfordcars" / "car_data" / "car_data"
    for i, name in enumerate(["train/Acura RL 2012/1", "train/BMW M3/2", "test/BMW M3/3"]):
        picture(base / f"{name}.jpg", 10 * i)
    data = load("stanfordcars", tmp_path)
    assert data.classes == ("Acura RL 2012", "BMW M3")
    assert seen(data.prompted) == [(0, 0), (10, 1)] and seen(data.test) == [(20, 1)]


def test_stanfordcars_in_torchvisions_layout(tmp_path):
    from scipy.io import savemat

    base = tmp_path / "stanfordcars" / "stanford_cars"
    kind = [("fname", object), ("class", object)]
    listed = {"devkit/cars_train_annos": ("cars_train", [("1.jpg", 2), ("2.jpg", 1)]),
              "cars_test_annos_withlabels": ("cars_test", [("3.jpg", 1), ("4.jpg", 2)])}
    (base / "devkit").mkdir(parents=True)
    for path, (folder, samples) in listed.items():
        savemat(base / f"{path}.mat", {"annotations": np.array(samples, dtype=kind)})
        for name, _ in samples:
            picture(base / folder / name, 10 * int(name[0]))
    names = np.array(["Acura", "BMW"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    data = load("stanfordcars", tmp_path)
    assert seen(data.prompted) == [(10, 1), (20, 0)] and seen(data.test) == [(30, 0), (40, 1)]


def test_gtsrb_takes_the_class_from_the_folder_name(tmp_path):
    base = tmp_path / "gtsrb" / "gtsrb"
    for i, label in enumerate([3, 42]):
        picture(base / "GTSRB" / "Training" / f"{label:05}" / "0.ppm", 10 * i)
    picture(base / "GTSRB" / "Final_Test" / "Images" / "9.ppm", 90)
    text(base / "GT-final_test.csv", "Filename;Width;Height;ClassId", "9.ppm;8;8;42")
    data = load("gtsrb", tmp_path)
    assert len(data.classes) == 43
    assert seen(data.prompted) == [(0, 3), (10, 42)] and seen(data.test) == [(90, 42)]


def test_eurosat_keeps_coops_proportions_and_repeats_no_image(tmp_path):
    for label, name in enumerate(["Forest", "River"]):
        for i in range(20):
            picture(tmp_path / "eurosat" / "2750" / name / f"{name}_{i}.png", 100 * label + i)
    data = load("eurosat", tmp_path)
    train, test = seen(data.prompted), seen(data.test)
    assert data.clean.labels.bincount().tolist() == [10, 10]
    assert data.test.labels.bincount().tolist() == [6, 6]
    assert not set(train) & set(test)
    assert all(value // 100 == label for value, label in train + test)


def test_sun397_follows_the_partition_lists(tmp_path):
    base = tmp_path / "sun397"
    names = ["/a/abbey/sun_1.jpg", "/a/apse/indoor/sun_2.jpg", "/a/abbey/sun_3.jpg"]
    for i, name in enumerate(names):
        picture(base / "SUN397" / name[1:], 10 * i)
    text(base / "Partitions" / "ClassName.txt", "/a/abbey", "/a/apse/indoor")
    text(base / "Partitions" / "Training_01.txt", *names[:2])
    text(base / "Partitions" / "Testing_01.txt", names[2])
    data = load("sun397", tmp_path)
    assert seen(data.prompted) == [(0, 0), (10, 1)] and seen(data.test) == [(20, 0)]


def test_imagenet_needs_val_in_class_folders(tmp_path):
    picture(tmp_path / "imagenet" / "train" / "n01440764" / "a.JPEG", 10)
    picture(tmp_path / "imagenet" / "train" / "n01443537" / "b.JPEG", 20)
    picture(tmp_path / "imagenet" / "val" / "n01443537" / "c.JPEG", 30)
    data = load("imagenet", tmp_path)
    assert seen(data.prompted) == [(10, 0), (20, 1)] and seen(data.test) == [(30, 1)]


def test_digits_split_is_stratified_and_scaled_to_bytes(tmp_path):
    data = load("digits", tmp_path)
    assert (data.clean.images, data.test.images) == (1437, 360)
    assert min(data.test.labels.bincount().tolist()) >= 34
    x, _ = next(data.test.batches())
    steps = {round(v * 255 / 16) for v in range(17)}
    assert set((x * 255).round().int().unique().tolist()) == steps


def test_every_row_has_the_batch_size_of_the_authors():
    others = {name: spec.batch_size for name, spec in SPECS.items() if spec.batch_size != 256}
    del others["digits"]  # not of theirs
    assert others == {"dtd": 64, "oxfordpets": 64, "flowers102": 128, "flowers102_official": 128,
                      "stanfordcars": 128, "imagenet": 1024}


def test_labels_are_int64_for_every_kind_of_source(tmp_path):
    write_idx(tmp_path, zipped=False)
    picture(tmp_path / "train" / "a" / "1.png", 1)
    picture(tmp_path / "test" / "a" / "1.png", 1)
    for name in ("mnist", "imagefolder", "digits"):
        assert load(name, tmp_path).test.labels.dtype == torch.int64
