"""Learned scores: one per weight, trained through the mask (paper, eq. 2; HYDRA's scaled start).

The network stays an ordinary one. Beside it live the dense weights and the scores, each in one
flat tensor; the weights in the network are dense * mask, written anew whenever the scores have
moved.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pruning.gmp import density_at
from pruning.granularity import ChannelRule, Rule
from pruning.masks import Masks, apply_masks, in_shapes, keep_top, prunable
from pruning.method import Search
from pruning.selection import TrackedThreshold, lift_best, require_finite, select_top
from pruning.stage import Group, Stage, nothing
from pruning.training import run_stage
from utils.optim import Optim

# ATen's kernels with which it computes the gradients of leaky ReLU and of hard shrinkage: one pass
# over memory where the operations that they consist of would take two or three.
_flip_where_negative = torch.ops.aten.leaky_relu_backward.grad_input
_zero_where_magnitude_small = torch.ops.aten.hardshrink_backward.grad_input


def learn_masks(search: Search) -> Masks:
    """Train scores on the views of the search, the prompt with them where it takes part.

    The scores are one group with an optimizer, the prompt another if any view is prompted.
    Dense weights, biases and BatchNorm's affine parameters are not trained: the network holds
    dense * mask, and BatchNorm's running statistics move, as in the authors' runs.
    """
    network, rule = search.model.network, search.rule
    if isinstance(rule, ChannelRule):
        learned = ChannelScores(network, search.density, search.floor, rule)
    else:
        learned = LearnedScores(network, search.density, search.floor, rule)
    return learned.train(search, (learned.group(search.score_optim),), search.views)


def initial_score(weight: Tensor) -> Tensor:
    """sqrt(6 / fan_in) * w / max|w|, signed, in the shape of the weight (HYDRA, section 4).

    A tensor of zeros gets zeros, not NaN.
    """
    fan_in = weight[0].numel()
    largest = weight.abs().max()
    return math.sqrt(6 / fan_in) * weight / torch.where(largest > 0, largest, 1.0)


class LearnedScores:
    """Scores of all prunable weights at one density, and the masked weights that follow them.

    Dense weights, scores and masked weights are flat tensors (N,), and the network's parameters
    are views of the last, so that a step is a few passes over memory that is allocated once.
    """

    def __init__(
        self, network: nn.Module, density: float, floor: float = 0.0, rule: Rule = keep_top
    ) -> None:
        """Changes `network`: its weights are masked by the initial scores at once.

        No weight tensor's density falls below `floor`.
        """
        self.density, self.floor, self.rule = density, floor, rule
        self.weights = prunable(network)
        self._sizes = [weight.numel() for weight in self.weights.values()]
        weights = [weight.detach() for weight in self.weights.values()]
        self.dense = torch.cat([weight.flatten() for weight in weights])
        self.flat_scores = torch.cat([initial_score(weight).flatten() for weight in weights])
        parts = self.parts(self.flat_scores).items()
        self.scores = {name: nn.Parameter(part) for name, part in parts}
        self._dense_parts = self.parts(self.dense)
        self._masked = torch.empty_like(self.dense)
        for name, part in self.parts(self._masked).items():
            self.weights[name].data = part
        self._threshold = TrackedThreshold()
        require_finite(self.flat_scores)
        self.renew()

    def parts(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat tensor (N,) in the shapes of the weights, by parameter name."""
        return in_shapes(flat, self.weights)

    def group(self, optim: Optim, only_half: int | None = None) -> Group:
        """The scores as a group of a stage."""
        scores = tuple(self.scores.values())
        return Group(scores, optim, "scores", only_half, memory=self.flat_scores)

    @torch.no_grad()
    def gradients(self, half: int = 0) -> None:
        """Straight through the mask: dL/dscore = dL/dw_eff * w * sign(score), pruned ones too.

        It is the same in both half-steps; BiP's is not, hence `half`. The weights' gradients become
        the scores', in place. A score of exactly 0 counts as negative, which changes nothing: it
        starts at 0 only where w is 0, and there dL/dscore is 0. The scores of a weight that takes
        no part in the forward pass get no gradient and stay.
        """
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            grad, score = weight.grad.mul_(self._dense_parts[name]), self.scores[name]
            score.grad = _flip_where_negative(grad, score, -1.0, False, grad_input=grad)
            weight.grad = None

    @torch.no_grad()
    def renew(self) -> None:
        """Write dense * mask into the network, the mask of the scores as they are now.

        It keeps the N - int((1 - density) * N) highest |score| over all layers together.
        """
        self.mask(self.dense, out=self._masked)

    def mask(self, values: Tensor, out: Tensor) -> None:
        """Write `values` (N,) times the mask of the present scores into `out`, maybe the same.

        The threshold is exact: remembering the last ones saves time and changes no mask.
        """
        if self.floor or self.rule is not keep_top or self.flat_scores.device.type != "cpu":
            # no product, which is -0.0 where a weight is negative
            torch.where(self.keep(), values, values.new_zeros(()), out=out)
            return
        threshold, ties = self._threshold(self.flat_scores, self.density)
        tied = values[ties]  # of the scores at the threshold those that stay; `out` may be `values`
        _zero_where_magnitude_small(values, self.flat_scores, threshold, grad_input=out)
        out[ties] = tied

    def keep(self) -> Tensor:
        """Select the mask of the present scores, bool (N,): exactly as many as the density asks."""
        sizes = self.flat_scores.abs()
        if self.rule is not keep_top:
            masks = self.rule(self.parts(sizes), self.density, self.floor)
            return torch.cat([mask.flatten() for mask in masks.values()])
        return select_top(lift_best(sizes, self._sizes, self.floor), self.density)

    def masks(self) -> Masks:
        """The masks of the present scores, by parameter name."""
        return self.parts(self.keep())

    def train(self, search: Search, groups: tuple[Group, ...], views: tuple[str, ...]) -> Masks:
        """Train these groups and the prompt; the masks at the end, under which the network stays.

        The network's weights get memory of their own again.
        """
        renew, before_step = self._falling(search) if search.falls else (self.renew, nothing)
        search.remap()
        stage = Stage(
            name="search",
            epochs=search.epochs,
            teach=search.teach,
            recorded=not search.falls,
            before_step=before_step,
            groups=(*groups, *search.prompt_groups()),
            views=views,
            needs_grad=tuple(self.weights.values()),
            before_epoch=search.before_epoch,
            gradients=self.gradients,
            renew=renew,
        )
        search.tested(run_stage(search.model, stage, search.data, search.log))
        if search.falls:
            del search.model.progress
            self.density = search.density  # a search without steps has not come to it
        for weight in self.weights.values():
            weight.data = weight.data.clone()
        masks = self.masks()
        apply_masks(search.model.network, masks)  # the filters of channels that nothing reads, too
        return masks

    def _falling(self, search: Search) -> tuple[Callable[[], None], Callable[[int, int], None]]:
        """The hooks `renew` and `before_step` of a search whose density falls by GMP's cubic.

        The steps that were made are a buffer of the model, and so in its states: a search that goes
        on has the density that it was stopped at.
        """
        progress = torch.tensor([0, 1], device=self.flat_scores.device)  # steps made, of all
        search.model.register_buffer("progress", progress, persistent=False)

        def renew() -> None:
            done, of = progress.tolist()
            self.density = density_at(done / of, search.density)
            self.renew()

        def before_step(done: int, of: int) -> None:
            progress.copy_(torch.tensor([done + 1, of]))
            if density_at((done + 1) / of, search.density) != self.density:
                renew()

        renew()
        return renew, before_step


class ChannelScores(LearnedScores):
    """A score for each channel; a channel is pruned where it is read.

    Its filters stay as they are until the search ends, which changes no output, so that a pruned
    channel goes on to tell by its gradient whether it should come back. The authors mask filters
    and BatchNorm too, after which no gradient comes (METHODS 5.5).
    """

    def __init__(self, network: nn.Module, density: float, floor: float, rule: ChannelRule) -> None:
        """Changes `network`: its weights are masked by the initial scores at once."""
        self.density, self.floor, self.rule = density, floor, rule
        self.all_weights = prunable(network)
        start = {n: initial_score(w.detach()).abs() for n, w in self.all_weights.items()}
        self.flat_scores = rule.pooled(start)
        self.scores = {"channels": nn.Parameter(self.flat_scores)}
        members, device = rule.channels.members, self.flat_scores.device
        self._columns = {name: rule.number[members[name, 1]].to(device)
                         for name in self.all_weights if (name, 1) in members}  # fmt: skip
        self.weights = {name: self.all_weights[name] for name in self._columns}
        self._dense_parts = {name: w.detach().clone() for name, w in self.weights.items()}
        require_finite(self.flat_scores)
        self.renew()

    @torch.no_grad()
    def gradients(self, half: int = 0) -> None:
        """Straight through the gate of a channel: dL/dscore = sum of dL/dw_eff * w * sign(score),
        over the columns that read it."""
        (score,) = self.scores.values()
        gathered = score.new_zeros(len(score) + 1)
        for name, weight in self.weights.items():
            if weight.grad is not None:
                grad = weight.grad.mul_(self._dense_parts[name]).movedim(1, 0).flatten(1).sum(1)
                gathered.index_add_(0, self._columns[name], grad)
                weight.grad = None
        score.grad = gathered[:-1] * score.sign()

    @torch.no_grad()
    def renew(self) -> None:
        """Write the columns of kept channels into the network, zeros for the others."""
        kept = self.keep()
        stays = torch.cat([kept, kept.new_ones(1)])
        for name, weight in self.weights.items():
            columns = stays[self._columns[name]].view(1, -1, *[1] * (weight.ndim - 2))
            dense = self._dense_parts[name]
            torch.where(columns, dense, dense.new_zeros(()), out=weight.data)

    def keep(self) -> Tensor:
        """Select the channels of the present scores, bool (P,)."""
        return self.rule.select(self.flat_scores.abs(), self.density, self.floor)

    def masks(self) -> Masks:
        """The masks of the present scores, of filters and columns, by parameter name."""
        return self.rule.masks(self.keep(), self.all_weights)
