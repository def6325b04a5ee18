"""A whole run as the authors make it: what job.py measures ours by.

PIL loaders with two workers, both views decoded in every epoch, the test images measured and a
full checkpoint written after each epoch. Their plots are left out.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from benchmarks import pil, reference
from data.load import DataConfig, hold_out
from data.opening import open_splits
from models.backbones import build_network


class Job(Protocol):
    """The settings of job.py that a run needs."""

    network: str
    dataset: str
    size: int
    epochs: int
    train_images: int
    pad_size: int
    batch: int
    densities: tuple[float, ...]
    seed: int
    data: str
    save_dir: str


@dataclass(frozen=True)
class Loaders:
    """The three loaders of a run and the number of classes."""

    clean: DataLoader
    prompted: DataLoader
    test: DataLoader
    classes: int


def open_loaders(job: Job) -> Loaders:
    """Loaders over the images that ours would take."""
    config = DataConfig(job.dataset, job.data, train_images=job.train_images)
    splits = open_splits(config.dataset, config.data, config.download)
    train, test = hold_out(splits.train, config)[0], splits.test
    return Loaders(
        pil.loader(train.images, train.labels, pil.augmented(job.size), job.batch),
        pil.loader(train.images, train.labels, pil.plain(job.size), job.batch),
        pil.loader(test.images, test.labels, pil.plain(job.size), job.batch, shuffle=False),
        len(train.classes),
    )


def run(job: Job) -> dict[str, Any]:
    """Every density; the accuracy after the last epoch of each, in percent."""
    torch.manual_seed(job.seed)
    loaders = open_loaders(job)
    network = reference.add_scores(build_network(job.network, "none", seed=job.seed))
    mapping = torch.arange(loaders.classes)
    model = reference.Reference(network, job.size, job.pad_size, mapping)
    start = copy.deepcopy(model.state_dict())
    accuracies = {}
    for level, density in enumerate(job.densities, start=1):
        model.load_state_dict(start)
        accuracies[str(density)] = run_level(job, loaders, model, density, f"{level}")
    prunable = sum(layer.weight.numel() for layer in reference.scored(network).values())
    return {"accuracies": accuracies, "prunable": prunable}


def run_level(
    job: Job, loaders: Loaders, model: reference.Reference, density: float, level: str
) -> float:
    """Search and fine-tuning of one density; the last accuracy on the test images."""
    start = copy.deepcopy(model.network.state_dict())
    reference.set_threshold(model.network, density)
    model.mapping = reference.frequency_mapping(model, loaders.clean, loaders.classes)
    reference.evaluate(model, loaders.test)
    accuracy = 0.0
    for name in ("prune", "best"):
        phase = reference.search(model, density) if name == "prune" else reference.finetuning(model)
        schedules = [CosineAnnealingLR(o, T_max=job.epochs) for o in (phase.moves, phase.prompt)]
        for epoch in range(job.epochs):
            model.train()
            for prompted, clean in zip(loaders.prompted, loaders.clean, strict=True):
                phase.iteration(prompted, clean)
            for schedule in schedules:
                schedule.step()
            accuracy = reference.evaluate(model, loaders.test)
            torch.save(
                {
                    "state_dict": model.network.state_dict(),  # weights and scores
                    "init_weight": start,
                    "optimizer": phase.moves.state_dict(),
                    "vp_optimizer": phase.prompt.state_dict(),
                    "schedulers": [schedule.state_dict() for schedule in schedules],
                    "visual_prompt": model.program,
                    "mapping_sequence": model.mapping,
                    "ckpt_test_acc": accuracy,
                    "epoch": epoch,
                },
                Path(job.save_dir) / f"{level}{name}.pth",
            )
    return accuracy
