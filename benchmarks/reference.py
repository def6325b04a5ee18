"""The authors' arithmetic, written anew from its description: what our own step is measured by.

Every convolution and linear layer becomes a twin with a score per weight. The mask is computed
in each forward pass as |score| > tau; tau is found with torch.kthvalue over all scores after
each score step. Optimizers have torch's default implementation.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batch = tuple[Tensor, Tensor]


class _Binarise(torch.autograd.Function):
    """1 above the threshold, else 0; the gradient passes unchanged (straight through)."""

    @staticmethod
    def forward(ctx, magnitudes: Tensor, tau: Tensor) -> Tensor:
        return (magnitudes > tau).float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Clamp(torch.autograd.Function):
    """clamp(x, 0, 1) as it was in 2023, when the gradient at exactly 0 and 1 was 1."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad.masked_fill((x < 0) | (x > 1), 0)


class Scored(nn.Module):
    """A layer whose weight is seen through the mask of its scores."""

    weight: nn.Parameter
    popup_scores: nn.Parameter
    tau: Tensor | None = None  # without a threshold all weights are seen

    def masked_weight(self) -> Tensor:
        if self.tau is None:
            return self.weight
        return self.weight * _Binarise.apply(self.popup_scores.abs(), self.tau)


class ScoredConv2d(Scored, nn.Conv2d):
    """The twin of a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.masked_weight(), self.bias)


class ScoredLinear(Scored, nn.Linear):
    """The twin of a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.masked_weight(), self.bias)


TWINS = {nn.Conv2d: ScoredConv2d, nn.Linear: ScoredLinear}


def add_scores(network: nn.Module) -> nn.Module:
    """Turn every convolution and linear layer of `network` into its scored twin, in place."""
    for layer in network.modules():
        if isinstance(layer, tuple(TWINS)):
            layer.__class__ = TWINS[type(layer)]
            weight = layer.weight.detach()
            start = math.sqrt(6 / weight[0].numel()) * weight / weight.abs().max()
            layer.popup_scores = nn.Parameter(start)
    return network


def scored(network: nn.Module) -> dict[str, Scored]:
    """The scored layers by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Scored)}


@torch.no_grad()
def set_threshold(network: nn.Module, density: float) -> None:
    """One threshold for all layers: the k-th smallest |score| of the whole network."""
    layers = scored(network).values()
    scores = torch.cat([layer.popup_scores.abs().flatten() for layer in layers])
    k = int((1 - density) * scores.numel())
    if k < 1:
        return
    tau = torch.kthvalue(scores, k).values
    for layer in layers:
        layer.tau = tau


def masks(network: nn.Module) -> dict[str, Tensor]:
    """The present masks, by parameter name."""
    layers = scored(network).items()
    return {f"{name}.weight": layer.popup_scores.abs() > layer.tau for name, layer in layers}


class Reference(nn.Module):
    """A scored network behind a `pad` prompt, with the target classes cut out of its logits."""

    def __init__(self, network: nn.Module, size: int, pad_size: int, mapping: Tensor) -> None:
        super().__init__()
        self.network, self.mapping, self._size = network, mapping, size
        self.program = nn.Parameter(torch.zeros(3, size, size))
        frame = torch.ones(3, size, size)
        frame[:, pad_size : size - pad_size, pad_size : size - pad_size] = 0
        self.register_buffer("frame", frame)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, x: Tensor, prompted: bool = False) -> Tensor:
        """(B, 3, h, h) in [0, 1] to logits (B, C)."""
        return self.source_logits(x, prompted)[:, self.mapping]

    def source_logits(self, x: Tensor, prompted: bool = False) -> Tensor:
        """(B, 3, h, h) in [0, 1] to the logits of the network's own classes."""
        if prompted:
            x = _Clamp.apply(self._place(x) + self.program * self.frame)
        return self.network((x - self.mean) / self.std)

    def _place(self, x: Tensor) -> Tensor:
        gap = self._size - x.shape[-1]
        left, right = (gap + 1) // 2, gap // 2
        return F.pad(x, (left, right, left, right))


@dataclass(frozen=True)
class Rates:
    """Learning rates of the scores and the prompt in the search, of both in fine-tuning."""

    score: float = 1e-4
    score_prompt: float = 1e-4
    weight: float = 0.01
    weight_prompt: float = 0.01
    weight_decay: float = 1e-4
    momentum: float = 0.9


@dataclass(frozen=True)
class Phase:
    """Search or fine-tuning: what moves in it. A density means that the mask follows the scores."""

    model: Reference
    moves: Optimizer
    prompt: Optimizer
    density: float | None = None

    def iteration(self, prompted: Batch, clean: Batch) -> tuple[float, float]:
        """A step on a prompted batch, then one on a clean batch; returns both losses."""
        return self._half_step(prompted, True), self._half_step(clean, False)

    def _half_step(self, batch: Batch, prompted: bool) -> float:
        images, labels = batch
        loss = F.cross_entropy(self.model(images, prompted), labels)
        self.moves.zero_grad()
        self.prompt.zero_grad()
        loss.backward()
        self.moves.step()
        self.prompt.step()
        if self.density is not None:
            set_threshold(self.model.network, self.density)
        return loss.item()


def search(model: Reference, density: float, rates: Rates = Rates()) -> Phase:
    """Scores and prompt move, with Adam; weights and biases of the scored layers are frozen."""
    layers = scored(model.network).values()
    for layer in layers:
        layer.requires_grad_(False)
        layer.popup_scores.requires_grad_(True)
    decay = rates.weight_decay
    scores = torch.optim.Adam(
        [layer.popup_scores for layer in layers], lr=rates.score, weight_decay=decay
    )
    prompt = torch.optim.Adam([model.program], lr=rates.score_prompt, weight_decay=decay)
    set_threshold(model.network, density)
    return Phase(model, scores, prompt, density)


def finetuning(model: Reference, rates: Rates = Rates()) -> Phase:
    """Weights, biases, BatchNorm and prompt move, with SGD; scores and threshold are fixed."""
    layers = scored(model.network).values()
    for layer in layers:
        layer.requires_grad_(True)
        layer.popup_scores.requires_grad_(False)
    weights = [p for p in model.network.parameters() if p.requires_grad]
    shared = {"momentum": rates.momentum, "weight_decay": rates.weight_decay}
    return Phase(
        model,
        torch.optim.SGD(weights, lr=rates.weight, **shared),
        torch.optim.SGD([model.program], lr=rates.weight_prompt, **shared),
    )


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Accuracy on clean images in percent; leaves the model in eval mode."""
    model.eval()
    correct = seen = 0
    for images, labels in batches:
        correct += (model(images).argmax(1) == labels).sum().item()
        seen += len(labels)
    return 100 * correct / seen


@torch.no_grad()
def frequency_mapping(model: Reference, batches: Iterable[Batch], classes: int) -> Tensor:
    """A source class for each target class: the most frequent pair first, each used once."""
    model.eval()
    counts = sum(_counts(model, images, labels, classes) for images, labels in batches)
    mapping = torch.zeros(classes, dtype=torch.int64)
    for source, target in _pairs(counts):
        mapping[target] = source
    return mapping


def _counts(model: Reference, images: Tensor, labels: Tensor, classes: int) -> Tensor:
    logits = model.source_logits(images, prompted=True)
    predicted = F.one_hot(logits.argmax(1), logits.shape[1])
    return predicted.T @ F.one_hot(labels, classes)


def _pairs(counts: Tensor) -> Iterator[tuple[int, int]]:
    for _ in range(counts.shape[1]):
        source, target = divmod(counts.argmax().item(), counts.shape[1])
        yield source, target
        counts[source], counts[:, target] = -1, -1
