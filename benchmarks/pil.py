"""The authors' loaders: PIL and torchvision's first transforms, in a DataLoader with workers."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data.images import FileImages, Images

Transform = Callable[[Image.Image], Tensor]


class PilImages(Dataset):
    """Images as PIL opens them, through a transform."""

    def __init__(self, images: Images, labels: Tensor, transform: Transform) -> None:
        self._images, self._labels, self._transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self._transform(self._open(row)), self._labels[row]

    def _open(self, row: int) -> Image.Image:
        if isinstance(self._images, FileImages):
            return Image.open(self._images.path(row))
        pixels = self._images.pixels[row]
        return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else _last(pixels).numpy())


def _last(pixels: Tensor) -> Tensor:
    return pixels.permute(1, 2, 0).contiguous()


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def augmented(size: int) -> Transform:
    """The transform of the clean training view."""
    side = 9 * size // 8
    return transforms.Compose(
        [
            transforms.Resize((side, side)),
            transforms.RandomCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.Lambda(_rgb),
            transforms.ToTensor(),
        ]
    )


def plain(size: int) -> Transform:
    """The transform of the prompted training view and of test images."""
    steps = [transforms.Resize((size, size)), transforms.Lambda(_rgb), transforms.ToTensor()]
    return transforms.Compose(steps)


def loader(
    images: Images, labels: Tensor, transform: Transform, batch: int, shuffle: bool = True
) -> DataLoader:
    """Batches from two workers, started anew for each epoch."""
    dataset = PilImages(images, labels, transform)
    return DataLoader(dataset, batch, shuffle=shuffle, num_workers=2)


def no_labels(images: Images) -> Tensor:
    """Labels for images that have none, int64 (N,)."""
    return torch.zeros(len(images), dtype=torch.int64)
