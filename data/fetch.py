"""Downloads through torchvision, which checks MD5 sums: each function fills one folder."""

from pathlib import Path

from torchvision import datasets


def cifar10(folder: Path) -> None:
    datasets.CIFAR10(folder, download=True)


def cifar100(folder: Path) -> None:
    datasets.CIFAR100(folder, download=True)


def flowers102(folder: Path) -> None:
    datasets.Flowers102(folder, download=True)


def dtd(folder: Path) -> None:
    datasets.DTD(folder, download=True)


def food101(folder: Path) -> None:
    datasets.Food101(folder, download=True)


def pets(folder: Path) -> None:
    datasets.OxfordIIITPet(folder, download=True)


def svhn(folder: Path) -> None:
    for split in ("train", "test"):
        datasets.SVHN(folder, split, download=True)


def gtsrb(folder: Path) -> None:
    for split in ("train", "test"):
        datasets.GTSRB(folder, split, download=True)


def eurosat(folder: Path) -> None:
    datasets.EuroSAT(folder, download=True)


def mnist(folder: Path) -> None:
    datasets.MNIST(folder, download=True)


def fashion_mnist(folder: Path) -> None:
    datasets.FashionMNIST(folder, download=True)
