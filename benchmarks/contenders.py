"""What the step benchmarks time: our search and fine-tuning, dense training, and the reference."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import reference
from models.backbones import backbone, build_network
from models.classifier import PromptedClassifier
from models.fit import require_fit
from prompts.kinds import PadPrompt
from pruning.masks import MaskKeeper, Masks, apply_masks
from pruning.method import Search
from pruning.scores import learn_masks
from pruning.stage import Group, Stage
from pruning.training import run_stage
from utils.optim import Optim, OptimConfig

CLASSES = 10
SGD, ADAM = Optim(OptimConfig()), Optim(OptimConfig(optimizer="adam", lr=1e-4))
Batch = tuple[Tensor, Tensor]


class Batches:
    """A view of two batches in memory that follow one another `length` times."""

    def __init__(self, pair: list[Batch], length: int) -> None:
        self._pair, self._length = pair, length

    def __len__(self) -> int:
        return self._length

    def batches(self, *key: object, start: int = 0) -> Iterator[Batch]:
        return (self._pair[step % 2] for step in range(start, self._length))


class InMemory:
    """The data of a stage: a prompted and a clean batch for each of `length` iterations."""

    val = None

    def __init__(self, prompted: list[Batch], clean: list[Batch], length: int) -> None:
        self.prompted, self.clean = Batches(prompted, length), Batches(clean, length)
        self.test = self.clean


class LoopLog:
    """The log of a stage whose iterations follow `loop`; keeps nothing."""

    key = (7, 0.5)

    def __init__(self, loop: Iterable[None]) -> None:
        self._loop = loop

    def resume(self, stage: str) -> None:
        return None

    def steps(self, steps: range, title: str) -> Iterator[int]:
        for step, _ in zip(steps, self._loop, strict=True):
            yield step

    def hold(self) -> AbstractContextManager[None]:
        return nullcontext()

    def answer_stop(self) -> None:
        pass

    def wants_state(self, done: int | None, epochs: int) -> bool:
        return False

    def wants_test(self, epoch: int, epochs: int) -> bool:
        return False

    def save(self, state: dict[str, Any]) -> None:
        pass

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        pass

    def add_passes(self, passes: float) -> None:
        pass


@dataclass(frozen=True)
class Case:
    """A network and batches for it; `size` in pixels is that of the images and of the canvas."""

    network: str = "resnet18"
    size: int = 32
    batch: int = 32
    density: float = 0.2

    def shape(self) -> tuple[int, int, int, int]:
        """Of a batch of images."""
        return self.batch, 3, self.size, self.size

    def require_fit(self) -> None:
        """Raises UsageError when the network cannot train on such batches."""
        build = partial(backbone(self.network).build, CLASSES)
        require_fit(self.network, build, [self.size], min(self.batch, 2))


class Bench:
    """One network and two pairs of batches; what is timed on them, ours and others'."""

    def __init__(self, case: Case) -> None:
        draw = torch.Generator().manual_seed(0)
        self.case = case
        images = [torch.rand(case.shape(), generator=draw) for _ in range(4)]
        labels = [torch.randint(0, CLASSES, (case.batch,), generator=draw) for _ in range(4)]
        pairs = list(zip(images, labels, strict=True))
        self.prompted, self.clean = pairs[:2], pairs[2:]
        self.network = build_network(case.network, "none")
        self.mapping = torch.arange(CLASSES)
        self.pad_size = max(1, case.size // 14)  # 16 of 224

    def data(self, length: int) -> InMemory:
        return InMemory(self.prompted, self.clean, length)

    def model(self) -> PromptedClassifier:
        """A fresh copy of the classifier with its prompt."""
        return self._classifier(PadPrompt(self.case.size, self.pad_size))

    def dense_model(self) -> PromptedClassifier:
        """A fresh copy of the classifier without a prompt."""
        return self._classifier(None)

    def _classifier(self, prompt: nn.Module | None) -> PromptedClassifier:
        model = PromptedClassifier(copy.deepcopy(self.network), prompt)
        model.label_map = self.mapping
        return model

    def scored(self) -> reference.Reference:
        """The same classifier with scored layers, its threshold set."""
        network = reference.add_scores(copy.deepcopy(self.network))
        reference.set_threshold(network, self.case.density)
        return reference.Reference(network, self.case.size, self.pad_size, self.mapping)

    def dense(self, fused: bool | None = None, moves: bool = True) -> Callable[[], None]:
        """Two plain SGD steps, on the prompted and on the clean batch; or the passes alone."""
        model = self.dense_model()
        options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
        optimizer = torch.optim.SGD(model.network.parameters(), fused=fused, **options)

        def two_steps() -> None:
            for images, labels in (self.prompted[0], self.clean[0]):
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                if moves:
                    optimizer.step()

        return two_steps

    def phase(self, make: Callable[..., reference.Phase], *args: float) -> Callable[[], None]:
        """An iteration of the reference."""
        phase = make(self.scored().train(), *args)
        return lambda: phase.iteration(self.prompted[0], self.clean[0])

    def search(self, loop: Iterable[None], steps: int) -> tuple[PromptedClassifier, Masks]:
        """Our search: so many steps, handed out by `loop`."""
        model, data, views = self.model(), self.data(steps), ("prompted", "clean")
        search = Search(model, data, self.case.density, 1, views, SGD, ADAM, ADAM, LoopLog(loop))
        return model, learn_masks(search)

    def finetune(
        self, model: PromptedClassifier, masks: Masks, loop: Iterable[None], steps: int
    ) -> None:
        """Our fine-tuning of what the search left: so many steps, handed out by `loop`."""
        apply_masks(model.network, masks)
        weights = Group(tuple(model.network.parameters()), SGD)
        prompt = Group(tuple(model.prompt.parameters()), SGD)
        keeper = MaskKeeper(model.network, masks)
        stage = Stage("finetune", 1, (weights, prompt), renew=keeper)
        run_stage(model, stage, self.data(steps), LoopLog(loop))
