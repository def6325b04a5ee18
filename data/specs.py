"""One row a dataset: classes, the authors' batch size, how to open it, where to get it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torchvision import datasets

from data import arrays, lists
from data.arrays import DIGITS, FIRST_FILE
from data.folder import open_folders, open_own_folders, open_tiny_imagenet
from data.images import Splits

CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """How to find, open and get one dataset."""

    classes: int | None  # None: read from the folders
    open: Callable[..., Splits]  # of the root folder; own images: and the share of the test part
    markers: tuple[str, ...] = ()  # must be in the root folder; `a|b` is either, none: built in
    source: str = ""  # where to get it
    size: str = ""  # of the download
    fetch: Callable[[Path], object] | None = None  # fills a folder, where torchvision can
    batch_size: int = 256

    @property
    def bytes(self) -> int:
        """The size of the download."""
        number, unit = self.size.split()
        return int(float(number) * {"MB": 10**6, "GB": 10**9}[unit])


def _idx_markers(folder: str) -> tuple[str, ...]:
    places = f"{folder}/raw/{FIRST_FILE}", FIRST_FILE
    return ("|".join(f"{place}{end}" for place in places for end in ("", ".gz")),)


def _download(kind: type[datasets.VisionDataset], *splits: str) -> Callable[[Path], object]:
    """Fill a folder by torchvision's download, which checks MD5 sums, for each of `splits`."""
    flags = [{"split": split} for split in splits] or [{}]
    return lambda folder: [kind(folder, download=True, **flag) for flag in flags]


SPECS: dict[str, Spec] = {
    "cifar10": Spec(
        10, partial(arrays.open_cifar, kind=datasets.CIFAR10), ("cifar-10-batches-py",),
        "https://www.cs.toronto.edu/~kriz/cifar.html", "170 MB", _download(datasets.CIFAR10)),
    "cifar100": Spec(
        100, partial(arrays.open_cifar, kind=datasets.CIFAR100), ("cifar-100-python",),
        "https://www.cs.toronto.edu/~kriz/cifar.html", "169 MB", _download(datasets.CIFAR100)),
    "flowers102": Spec(
        102, lists.open_flowers_coop, ("jpg", "split_zhou_OxfordFlowers.json"),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ (102flowers.tgz) and CoOp's "
        "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md#flowers102 (the split file); "
        "or use --dataset flowers102_official", "345 MB", batch_size=128),
    "flowers102_official": Spec(
        102, lists.open_flowers_official, ("flowers-102/jpg",),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/", "345 MB",
        _download(datasets.Flowers102), batch_size=128),
    "dtd": Spec(
        47, partial(lists.open_lists, kind=datasets.DTD, train=("train", "val")),  # partition 1
        ("dtd/dtd/images", "dtd/dtd/labels"),
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/", "625 MB", _download(datasets.DTD), 64),
    "food101": Spec(
        101, partial(lists.open_lists, kind=datasets.Food101, train=("train",)),
        ("food-101/images", "food-101/meta"),
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/", "5.0 GB",
        _download(datasets.Food101)),
    "oxfordpets": Spec(
        37, lists.open_pets, ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
        "https://www.robots.ox.ac.uk/~vgg/data/pets/", "811 MB",
        _download(datasets.OxfordIIITPet), batch_size=64),
    "stanfordcars": Spec(
        196, lists.open_cars, ("car_data/car_data/train|stanford_cars/devkit",),
        "https://www.kaggle.com/datasets/jutrera/stanford-car-dataset-by-classes-folder", "1.9 GB",
        batch_size=128),
    "tiny_imagenet": Spec(
        200, open_tiny_imagenet, ("tiny-imagenet-200|wnids.txt",),
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "237 MB"),
    "imagenet": Spec(
        1000, partial(open_folders, test=("val",)), ("train", "val"),
        "https://image-net.org/download.php (one folder a wnid)", "145 GB", batch_size=1024),
    "svhn": Spec(
        10, arrays.open_svhn, ("train_32x32.mat", "test_32x32.mat"),
        "http://ufldl.stanford.edu/housenumbers/", "246 MB",
        _download(datasets.SVHN, "train", "test")),
    "gtsrb": Spec(
        43, lists.open_gtsrb, ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images"),
        "https://benchmark.ini.rub.de/gtsrb_dataset.html", "276 MB",
        _download(datasets.GTSRB, "train", "test")),
    "eurosat": Spec(
        10, lists.open_eurosat, ("eurosat/2750",),
        "https://github.com/phelber/eurosat (EuroSAT.zip, RGB)", "94 MB",
        _download(datasets.EuroSAT)),
    "sun397": Spec(
        397, lists.open_sun397, ("SUN397", "Partitions/Training_01.txt|"
                               "SUN397/Partitions/Training_01.txt|Training_01.txt"),
        "https://vision.princeton.edu/projects/2010/SUN/ (SUN397.tar.gz and Partitions.zip)",
        "37 GB"),
    "mnist": Spec(
        10, partial(arrays.open_idx, folder="MNIST", classes=DIGITS), _idx_markers("MNIST"),
        "https://ossci-datasets.s3.amazonaws.com/mnist/", "12 MB", _download(datasets.MNIST)),
    "fashion_mnist": Spec(
        10, partial(arrays.open_idx, folder="FashionMNIST", classes=CLOTHES),
        _idx_markers("FashionMNIST"), "https://github.com/zalandoresearch/fashion-mnist",
        "31 MB", _download(datasets.FashionMNIST)),
    "digits": Spec(10, arrays.open_digits, batch_size=32),
    "imagefolder": Spec(
        None, open_own_folders, ("train", "test|val"),
        "your own images, one folder a class", "any"),
}  # fmt: skip
