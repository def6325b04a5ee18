"""A whole run as the authors make it, with the flags of main_vpns.py: job.py measures ours by it.

PIL loaders with two workers, both views decoded in every epoch, the test images measured and a
full checkpoint written after each epoch. Their plots are left out.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks import reference
from benchmarks.timing import print_result
from data.images import FileImages, Part
from data.load import hold_out
from data.opening import open_splits
from models.backbones import build_network
from models.classifier import PromptedClassifier
from models.label_map import count_predictions, frequency_mapping
from program.settings import Config, read_config
from utils.device import choose_device

Transform = Callable[[Image.Image], Tensor]


class PilImages(Dataset):
    """Images as PIL opens them, through a transform, with their labels."""

    def __init__(self, part: Part, transform: Transform) -> None:
        self._images, self._labels = part.images, part.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if isinstance(self._images, FileImages):
            image = Image.open(self._images.path(row))
        else:
            image = transforms.functional.to_pil_image(self._images.pixels[row])
        return self._transform(image), self._labels[row]


def to_rgb(image: Image.Image) -> Image.Image:
    """The image with three channels."""
    return image.convert("RGB")


def loader(
    part: Part, size: int, batch: int, shuffle: bool = True, augment: bool = False
) -> DataLoader:
    """Batches from two workers, started anew for each epoch; the clean view is augmented."""
    side = 9 * size // 8 if augment else size
    cuts = [transforms.RandomCrop(size), transforms.RandomHorizontalFlip()] if augment else []
    end = [transforms.Lambda(to_rgb), transforms.ToTensor()]
    transform = transforms.Compose([transforms.Resize((side, side)), *cuts, *end])
    return DataLoader(PilImages(part, transform), batch, shuffle=shuffle, num_workers=2)


class OnDevice(NamedTuple):
    """Batches of a loader on a device, moved when they are used, as theirs are."""

    batches: DataLoader
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.to(self.device), y.to(self.device)) for x, y in self.batches)


class Loaders(NamedTuple):
    """The views of a run."""

    clean: OnDevice
    prompted: OnDevice
    test: OnDevice


def run(config: Config) -> list[dict[str, float]]:
    """Make every level; for each its density and its last accuracy, in percent, as `clean`."""
    data, seed, device = config.data, config.run.seed, choose_device(config.run.device, None)
    splits = open_splits(data.dataset, data.data, data.download)
    train = hold_out(splits.train, data)[0]
    loaders = Loaders(
        OnDevice(loader(train, data.input_size, data.batch_size, augment=True), device),
        OnDevice(loader(train, data.input_size, data.batch_size), device),
        OnDevice(loader(splits.test, data.input_size, data.batch_size, shuffle=False), device),
    )
    network = reference.add_scores(build_network(config.network.network, "none", seed=seed))
    start, rows = PromptedClassifier(network, config.build_prompt()).to(device), []
    for density in config.levels:
        model = copy.deepcopy(start)
        reference.set_threshold(model.network, density)
        counts = count_predictions(model, loaders.clean, len(train.classes), prompted=True)
        model.label_map = frequency_mapping(counts).to(device)
        torch.manual_seed(seed)  # counting seeds torch alike for all runs
        reference.evaluate(model, loaders.test)
        rows.append({"density": density, "clean": train_level(config, loaders, model, density)})
    return rows


def train_level(
    config: Config, loaders: Loaders, model: PromptedClassifier, density: float
) -> float:
    """Search and fine-tuning of one density; the last accuracy on the test images."""
    start = copy.deepcopy(model.network.state_dict())
    for name in ("prune", "best"):
        phase = reference.search(model, density) if name == "prune" else reference.finetuning(model)
        epochs = config.method.epochs
        schedules = [CosineAnnealingLR(o, T_max=epochs) for o in phase.optimizers]
        for epoch in range(epochs):
            model.train()
            for prompted, clean in zip(loaders.prompted, loaders.clean, strict=True):
                phase.iteration(prompted, clean)
            for schedule in schedules:
                schedule.step()
            accuracy = reference.evaluate(model, loaders.test)
            checkpoint = {
                "state_dict": model.network.state_dict(),  # weights and scores
                "init_weight": start,
                "optimizer": phase.optimizers[0].state_dict(),
                "vp_optimizer": phase.optimizers[1].state_dict(),
                "schedulers": [schedule.state_dict() for schedule in schedules],
                "visual_prompt": model.prompt.program,
                "mapping_sequence": model.label_map,
                "ckpt_test_acc": accuracy,
                "epoch": epoch,
            }
            torch.save(checkpoint, Path(config.run.save_dir) / f"{density}{name}.pth")
    return accuracy


if __name__ == "__main__":
    print_result(rows=run(read_config(sys.argv[1:])[0]))
