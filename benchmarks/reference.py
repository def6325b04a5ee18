"""The authors' arithmetic, written anew from its description, to measure our own step by.

The weight of every convolution and linear layer is seen through a mask of scores, computed in
each forward pass as |score| > tau; tau is found with torch.kthvalue over all scores after each
score step. Optimizers have torch's default implementation.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import SGD, Adam, Optimizer

from models.classifier import PromptedClassifier

DECAY = 1e-4
SGD_OPTIONS = {"lr": 0.01, "momentum": 0.9, "weight_decay": DECAY}  # of dense training too
Batch = tuple[Tensor, Tensor]


class _Binarise(torch.autograd.Function):
    """1 above the threshold, else 0; the gradient passes unchanged (straight through)."""

    @staticmethod
    def forward(ctx, magnitudes: Tensor, tau: Tensor) -> Tensor:
        return (magnitudes > tau).float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class ScoreMask(nn.Module):
    """Parametrization of a weight by a score for each of its values; at first all are seen."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        start = math.sqrt(6 / weight[0].numel()) * weight / weight.abs().max()
        self.scores = nn.Parameter(start)
        self.tau = torch.tensor(-1.0)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * _Binarise.apply(self.scores.abs(), self.tau)


def add_scores(network: nn.Module) -> nn.Module:
    """Give every convolution and linear layer of `network` scores, in place."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            mask = ScoreMask(layer.weight.detach())
            parametrize.register_parametrization(layer, "weight", mask)
    return network


def score_masks(network: nn.Module) -> dict[str, ScoreMask]:
    """The scores' modules, by the name of the weight."""
    return {f"{name}.weight": layer.parametrizations.weight[0]
            for name, layer in network.named_modules()
            if parametrize.is_parametrized(layer)}  # fmt: skip


@torch.no_grad()
def set_threshold(network: nn.Module, density: float) -> None:
    """One threshold for all layers: the k-th smallest |score| of the whole network."""
    masks = score_masks(network).values()
    scores = torch.cat([mask.scores.abs().flatten() for mask in masks])
    if k := int((1 - density) * scores.numel()):
        tau = torch.kthvalue(scores, k).values
        for mask in masks:
            mask.tau = tau


def masks(network: nn.Module) -> dict[str, Tensor]:
    """The present masks, by the name of the weight."""
    return {name: mask.scores.abs() > mask.tau for name, mask in score_masks(network).items()}


@dataclass(frozen=True)
class Phase:
    """Search or fine-tuning. A density means that the mask follows the scores."""

    model: PromptedClassifier
    optimizers: tuple[Optimizer, Optimizer]  # of the network and of the prompt
    density: float | None = None

    def iteration(self, prompted: Batch, clean: Batch) -> tuple[float, float]:
        """A step on a prompted batch, then one on a clean batch; returns both losses."""
        return self._half_step(prompted, True), self._half_step(clean, False)

    def _half_step(self, batch: Batch, prompted: bool) -> float:
        images, labels = batch
        loss = F.cross_entropy(self.model(images, prompted), labels)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        if self.density is not None:
            set_threshold(self.model.network, self.density)
        return loss.item()


def search(model: PromptedClassifier, density: float, lr: float = 1e-4) -> Phase:
    """Scores and prompt move, with Adam; weights and biases of the scored layers are frozen."""
    for layer in model.network.modules():
        if parametrize.is_parametrized(layer):
            layer.requires_grad_(False)
    scores = [mask.scores.requires_grad_(True) for mask in score_masks(model.network).values()]
    options = {"lr": lr, "weight_decay": DECAY}
    set_threshold(model.network, density)
    optimizers = Adam(scores, **options), Adam(model.prompt.parameters(), **options)
    return Phase(model, optimizers, density)


def finetuning(model: PromptedClassifier) -> Phase:
    """Weights, biases, BatchNorm and prompt move, with SGD; scores and threshold are fixed."""
    model.network.requires_grad_(True)
    for mask in score_masks(model.network).values():
        mask.scores.requires_grad_(False)
    weights = [p for p in model.network.parameters() if p.requires_grad]
    optimizers = SGD(weights, **SGD_OPTIONS), SGD(model.prompt.parameters(), **SGD_OPTIONS)
    return Phase(model, optimizers)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Accuracy on clean images in percent; leaves the model in eval mode."""
    model.eval()
    correct = seen = 0
    for images, labels in batches:
        correct += (model(images).argmax(1) == labels).sum().item()
        seen += len(labels)
    return 100 * correct / seen
