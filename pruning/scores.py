"""Learned scores: one per weight, trained through the mask (paper, eq. 2; HYDRA's scaled start).

The network stays an ordinary one. Beside it live the dense weights and the scores, each in one
flat tensor over all layers; the weights in the network are dense * mask, written anew whenever
the scores have moved.
"""

import math

import torch
from torch import Tensor, nn

from pruning.masks import Masks, prunable, require_finite, select_top, write_mask
from pruning.method import Search
from pruning.stage import Group, Stage, run_stage


def initial_score(weight: Tensor) -> Tensor:
    """sqrt(6 / fan_in) * w / max|w|, signed, in the shape of the weight (HYDRA, section 4).

    A layer whose weights are all zero gets zeros, not NaN.
    """
    fan_in = weight[0].numel()
    largest = weight.abs().max()
    return math.sqrt(6 / fan_in) * weight / torch.where(largest > 0, largest, 1.0)


class LearnedScores:
    """Scores of all prunable weights at one density, and the masked weights that follow them.

    While it is in use the network's weights are views of one flat tensor, so that a step is a few
    passes over memory that is allocated once; `release` gives them memory of their own again.
    Two buffers serve twice: from `take_gradients` to `refresh` nobody needs the masked weights,
    and from `refresh` to `take_gradients` the gradient's memory holds the mask.
    """

    def __init__(self, network: nn.Module, density: float) -> None:
        """Changes `network`: its weights are masked by the initial scores at once."""
        self.density = density
        self.layers = prunable(network)
        self._sizes = [layer.weight.numel() for layer in self.layers.values()]
        weights = [layer.weight.detach() for layer in self.layers.values()]
        self.dense = torch.cat([weight.flatten() for weight in weights])
        self.flat = nn.Parameter(torch.cat([initial_score(weight).flatten() for weight in weights]))
        self._weights = torch.empty_like(self.dense)
        self._gradient = self.factor = torch.empty_like(self.dense)  # factor: 1.0 is kept
        self._dense_parts = self.per_layer(self.dense)
        self._gradient_parts = self.per_layer(self._gradient)
        for name, part in self.per_layer(self._weights).items():
            self.layers[name].weight.data = part
        require_finite(self.flat.detach())
        self.refresh()

    def per_layer(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat tensor (N,) in the shapes of the weights, by layer name."""
        parts = zip(self.layers.items(), flat.split(self._sizes), strict=True)
        return {name: part.view(layer.weight.shape) for (name, layer), part in parts}

    @torch.no_grad()
    def take_gradients(self, half: int = 0) -> None:
        """Straight through the mask: dL/dscore = dL/dw_eff * w * sign(score), pruned ones too."""
        for name, layer in self.layers.items():
            torch.mul(layer.weight.grad, self._dense_parts[name], out=self._gradient_parts[name])
        self._gradient.mul_(torch.sign(self.flat.detach(), out=self._weights))
        self.flat.grad = self._gradient

    @torch.no_grad()
    def refresh(self) -> None:
        """Renew the mask from |score| and write dense * mask into the network."""
        torch.abs(self.flat.detach(), out=self._weights)
        write_mask(self._weights, self.density, out=self.factor)
        torch.mul(self.dense, self.factor, out=self._weights)

    @property
    def keep(self) -> Tensor:
        """The mask of the present scores, bool (N,)."""
        return select_top(self.flat.detach().abs(), self.density)

    def masks(self) -> Masks:
        """The masks of the present scores, by layer name."""
        return self.per_layer(self.keep)

    def release(self) -> None:
        """Give the network's weights memory of their own."""
        for layer in self.layers.values():
            layer.weight.data = layer.weight.data.clone()


def learn_masks(search: Search) -> Masks:
    """Train scores on the views of the search, the prompt with them where it takes part.

    Weights, biases and BatchNorm's affine parameters stay as they are; BatchNorm's running
    statistics move, as in the authors' runs.
    """
    learned = LearnedScores(search.model.network, search.density)
    search.remap()
    stage = Stage(
        name="search",
        epochs=search.epochs,
        groups=(Group((learned.flat,), search.score_optim, "scores"), *search.prompt_groups()),
        views=search.views,
        needs_grad=tuple(layer.weight for layer in learned.layers.values()),
        before_epoch=search.before_epoch,
        before_step=learned.take_gradients,
        after_step=learned.refresh,
    )
    run_stage(search.model, stage, search.data, search.log)
    learned.release()
    return learned.masks()
