"""Searches with the tiny model, for the tests of methods."""

import functools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from conftest import CLASSES, SIZE, MemoryLog, TinyData, TinyView, tiny_model
from torch import Tensor, nn

from models.classifier import PromptedClassifier
from prompts.kinds import PadPrompt
from pruning import METHODS, Search
from pruning.masks import Masks, prunable
from pruning.scores import LearnedScores
from pruning.stage import CLEAN, PROMPTED
from utils.optim import Optim, OptimConfig

BOTH = (PROMPTED, CLEAN)
VIEWS = {"prompted": BOTH, "clean": (CLEAN,), "repeated": (CLEAN, CLEAN)}
OPTIM, SCORES = Optim(OptimConfig("sgd", 0.1, 1e-4)), Optim(OptimConfig("adam", 0.05, 1e-4))


def make_search(model: PromptedClassifier | None = None, **changes: Any) -> Search:
    """One epoch on the clean view at density 0.3, unless changed."""
    values: dict[str, Any] = {
        "model": model or tiny_model(), "data": TinyData(), "density": 0.3, "epochs": 1,
        "views": (CLEAN,), "weight_optim": OPTIM, "score_optim": SCORES, "prompt_optim": OPTIM,
        "log": MemoryLog(),
    }  # fmt: skip
    return Search(**values | changes)


def score_gradient(learned: LearnedScores) -> Tensor:
    """The gradients of all scores, flat (N,)."""
    return torch.cat([score.grad.flatten() for score in learned.scores.values()])


@dataclass(frozen=True)
class Found:
    """What a method left behind."""

    search: Search
    masks: Masks

    @property
    def model(self) -> PromptedClassifier:
        return self.search.model

    @property
    def log(self) -> MemoryLog:
        return self.search.log


def find(name: str, seed: int = 7, **changes: Any) -> Found:
    """Search with a method of the registry; a method of one density gets that one."""
    only = METHODS[name].only_density
    found = make_search(**changes | ({"density": only} if only else {}))
    found.log.key = (seed, found.density)
    return Found(found, METHODS[name].find_masks(found))


known = functools.cache(find)  # for tests that only look: the same search is made once


def dense_state(model: PromptedClassifier | None = None) -> dict[str, Tensor]:
    """A copy of a model's state, by default of the tiny model's as it is built."""
    state = (model or tiny_model()).state_dict()
    return {key: tensor.detach().clone() for key, tensor in state.items()}


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """The tensors of all layers as one."""
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the prunable weights."""
    return {name: weight.detach().clone() for name, weight in prunable(network).items()}


def nonzero(network: nn.Module) -> Tensor:
    """Which prunable weights are not zero, as one tensor."""
    return flat(weights(network)) != 0


class Watch(MemoryLog):
    """Notes, by stage, which weights are not zero at every training forward and at every end."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.seen: dict[str, list[Tensor]] = defaultdict(list)
        self.ends: dict[str, dict[str, Tensor]] = {}
        self._stage = ""
        network.register_forward_pre_hook(self._note)

    def _note(self, network: nn.Module, _: Any) -> None:
        if network.training:
            self.seen[self._stage].append(nonzero(network))

    def steps(self, steps: range, title: str) -> Any:
        self._stage = title.split()[0]
        return super().steps(steps, title)

    def epoch(self, row: dict[str, Any], model: PromptedClassifier) -> None:
        super().epoch(row, model)
        self.seen[row["stage"]].append(nonzero(model.network))
        self.ends[row["stage"]] = weights(model.network) | {
            "program": model.prompt.program.detach().clone()
        }


class FixedView(TinyView):
    """Given images in a fixed order."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int) -> None:
        super().__init__("fixed", len(y), batch_size)
        self.x, self.y = x, y

    def whole(self):
        return self

    def batches(self, *key: object, start: int = 0) -> Any:
        for rows in torch.arange(self.images).split(self._batch)[start:]:
            yield self.x[rows], self.y[rows]


def small_model(network: nn.Module, label_map: list[int] | None) -> PromptedClassifier:
    """A network in float64 with a prompt, inputs as they are."""
    model = PromptedClassifier(network, PadPrompt(SIZE, 1), (0.0,) * 3, (1.0,) * 3).double()
    model.label_map = None if label_map is None else torch.tensor(label_map)
    return model


def fixed_data(images: int, side: int = 1, batch_size: int = 8, classes: int = CLASSES) -> TinyData:
    """Random float64 images (N, 3, side, side) with random labels."""
    draw = torch.Generator().manual_seed(3)
    x = torch.rand(images, 3, side, side, generator=draw, dtype=torch.float64)
    y = torch.randint(0, classes, (images,), generator=draw)
    view = FixedView(x, y, batch_size)
    return TinyData(clean=view, prompted=view, test=view)
