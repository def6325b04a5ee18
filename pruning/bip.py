"""BiP (Zhang et al. 2022): weights and scores by turns, a bi-level problem; no fine-tuning.

Lower step: the dense weights theta move with the gradient through the mask. Upper step: the
scores move with BiP's implicit gradient, which needs no Hessian because z = m * theta is linear
in both:

    dL/dm = (theta - (1 / gamma) m * dL/dz) * dL/dz,    dL/ds = dL/dm * sign(s)

The authors' code, like the original's, multiplies each score's gradient with itself where the
formula has the weight's, which at 1e-4 changes nothing that can be seen, and spends a third pass
an iteration on the same gradients.
"""

import torch
from torch import nn

from pruning.granularity import PATTERN, WEIGHT, Rule
from pruning.masks import Masks, keep_top
from pruning.method import Method, Search
from pruning.scores import LearnedScores
from pruning.stage import CLEAN, OTHER, PROMPTED, Group

LOWER, UPPER = 0, 1
INVERSE_GAMMA = 1e-4  # the original's learning rate of the implicit term


class BilevelScores(LearnedScores):
    """Learned scores over dense weights that move too."""

    def __init__(
        self, network: nn.Module, density: float, floor: float = 0.0, rule: Rule = keep_top
    ) -> None:
        super().__init__(network, density, floor, rule)
        self.theta = nn.Parameter(self.dense)  # the same memory: `renew` sees every step

    @torch.no_grad()
    def gradients(self, half: int = LOWER) -> None:
        """The weights' gradient in the lower step, the scores' implicit one in the upper.

        The implicit one is exact when the loss is linear in the masked weight z = m * theta and
        theta solves the lower problem, min L(z) + gamma / 2 |theta|^2.
        """
        weights = self.weights.values()
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        effective = torch.cat([grad.flatten() for grad in grads])
        masked = effective if half == LOWER else effective.clone()
        self.mask(effective, out=masked)
        if half == LOWER:
            self.theta.grad = masked
            return
        implicit = self.dense - INVERSE_GAMMA * masked
        gradient = self.parts(implicit * effective * self.flat_scores.sign())
        for name, score in self.scores.items():
            score.grad = gradient[name]


def find_masks(search: Search) -> Masks:
    """The masks at the end; the network keeps the weights that were trained under them."""
    network = search.model.network
    learned = BilevelScores(network, search.density, search.floor, search.rule)
    masked = {id(weight) for weight in learned.weights.values()}
    others = tuple(p for p in network.parameters() if id(p) not in masked)
    groups = (  # the prompt has a gradient in the upper half only, which shows it
        Group((learned.theta,), search.weight_optim, "theta", only_half=LOWER),
        Group(others, search.weight_optim, only_half=LOWER),
        learned.group(search.score_optim, only_half=UPPER),
    )
    return learned.train(search, groups, (CLEAN, PROMPTED) if search.prompted else (OTHER, CLEAN))


def search_passes(epochs: int, updates: int, before: float, density: float) -> int:
    """A lower and an upper pass an epoch, prompted or not."""
    return 2 * epochs


BIP = Method(
    find_masks,
    finetunes=False,
    learns=True,
    granularities=(WEIGHT, PATTERN),
    search_passes=search_passes,
    curve=("#56B4E9", "^"),
)
