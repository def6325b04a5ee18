"""Weights that train under a mask which moves: what GMP, AC/DC and RigL have in common."""

from collections.abc import Callable

import torch
from torch import Tensor

from pruning.dense import weight_stage
from pruning.masks import Masks, in_shapes, prunable
from pruning.method import Search
from pruning.stage import nothing
from pruning.training import run_stage


class MovingMask:
    """The mask of all prunable weights, one flat bool tensor (N,), kept wherever states are.

    It is a buffer of the model while the search lasts, so that a run goes on under the mask that it
    was stopped under. A pruned weight is 0; it moves again from there once its mask lets it.
    """

    def __init__(self, search: Search, start: Masks) -> None:
        """Changes the model: its weights are masked by `start`."""
        self.search, self.weights = search, prunable(search.model.network)
        self.flat = torch.cat([start[name].flatten() for name in self.weights])
        self.masks = in_shapes(self.flat, self.weights)
        search.model.register_buffer("moving_mask", self.flat, persistent=False)
        self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Set the pruned weights to +0.0, in place."""
        for name, weight in self.weights.items():
            torch.where(self.masks[name], weight, weight.new_zeros(()), out=weight.data)

    @torch.no_grad()
    def take(self, masks: Masks) -> None:
        """Train under these masks from now on."""
        for name, mask in self.masks.items():
            mask.copy_(masks[name])
        self.renew()

    def magnitudes(self) -> dict[str, Tensor]:
        """|w|, by parameter name; of pruned weights 0."""
        return {name: weight.detach().abs() for name, weight in self.weights.items()}

    def train(
        self, before_step: Callable[[int, int], None], gradients: Callable[[int], None] = nothing
    ) -> Masks:
        """Train weights and prompt on the views of the search; the masks at the end.

        The network stays as it was trained: fine-tuning goes on from there.
        """
        search = self.search
        search.remap()
        stage = weight_stage(
            search,
            "search",
            any_density=False,
            teach=search.teach,
            recorded=gradients is nothing,
            before_step=before_step,
            gradients=gradients,
            renew=self.renew,
        )
        search.tested(run_stage(search.model, stage, search.data, search.log))
        del search.model.moving_mask
        return self.masks

    def train_by_magnitude(self, before_step: Callable[[int, int], None]) -> Masks:
        """The same; a search without steps ends with the largest weights as well."""
        masks = self.train(before_step)
        if self.search.epochs == 0:
            self.take(self.search.keep(self.magnitudes()))
        return masks
