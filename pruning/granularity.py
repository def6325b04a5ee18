"""What is pruned together: single weights, N of every M weights, or whole channels."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.masks import Masks, Scores, keep_top
from pruning.selection import lift_best, require_finite, require_room, select_top
from utils.counts import count_at
from utils.errors import UsageError

Rule = Callable[[Scores, float, float], Masks]  # scores, density and floor to masks
WEIGHT, PATTERN, CHANNEL = "weight", "nm", "channel"
KINDS = (WEIGHT, PATTERN, CHANNEL)
LARGEST = 64  # M of a pattern


def granularity_named(text: str) -> str:
    """A parser for --granularity; ValueError for another word."""
    pattern_of(text)
    return text


def pattern_of(granularity: str) -> tuple[int, int] | None:
    """N and M of `nm:N:M`, None for weight and channel. Raises ValueError for another word."""
    if granularity in (WEIGHT, CHANNEL):
        return None
    kind, *numbers = granularity.split(":")
    if kind == PATTERN and len(numbers) == 2 and all(map(str.isdecimal, numbers)):
        n, m = map(int, numbers)
        if 0 < n < m <= LARGEST:
            return n, m
    raise ValueError(f"{granularity!r} is none of weight, channel and nm:N:M with "
                     f"0 < N < M <= {LARGEST}, such as nm:2:4")  # fmt: skip


def rule_of(granularity: str, channels: Callable[[], Any]) -> Rule:
    """The rule that turns scores into masks; `channels()` gives those of the network."""
    if granularity == CHANNEL:
        return ChannelRule(channels())
    pattern = pattern_of(granularity)
    return keep_top if pattern is None else partial(keep_pattern, m=pattern[1])


def keep_pattern(scores: Mapping[str, Tensor], density: float, floor: float, m: int) -> Masks:
    """Keep the highest ceil(density * m) of every m scores along the inputs of each weight.

    The inputs are dimension 1 of a weight (out, in, ...), each position of a kernel by itself; a
    last group of fewer than m keeps as many, or all that it has. Of equal scores the first stay.
    """
    n = math.ceil(round(density * m, 9))
    for score in scores.values():
        require_finite(score)
    return {name: _best_of_groups(score, n, m) for name, score in scores.items()}


def _best_of_groups(score: Tensor, n: int, m: int) -> Tensor:
    along = score.movedim(1, -1)
    groups = F.pad(along, (0, -along.shape[-1] % m), value=-math.inf).unflatten(-1, (-1, m))
    # How many of its group go before each score: a few comparisons, where sorting takes long.
    kept = torch.empty_like(groups, dtype=torch.bool)
    for place in range(m):
        own = groups[..., place : place + 1]
        before = (groups > own).sum(-1) + (groups[..., :place] == own).sum(-1)
        kept[..., place] = before < n
    return kept.flatten(-2)[..., : along.shape[-1]].movedim(-1, 1).contiguous()


def pattern_count(mask: Tensor, n: int, m: int) -> int:
    """How many weights of this shape the pattern keeps."""
    groups, rest = divmod(mask.shape[1], m)
    return mask.numel() // max(1, mask.shape[1]) * (groups * n + min(rest, n))


class ChannelRule:
    """Keeps whole channels: with a channel go its filters and the columns that read it.

    `number` (N,) numbers the channels that may go, of all N, and is `count` at those that may not;
    `sizes` counts them by the layer that writes them first.
    """

    def __init__(self, channels: Any) -> None:
        """`channels` is models.channels.Channels. Raises UsageError where no channel may go."""
        self.channels = channels
        free = ~channels.held
        self.count = int(free.sum())
        if not self.count:
            raise UsageError("no channel of this network can be pruned: --granularity weight")
        self.number = torch.where(free, free.cumsum(0) - 1, self.count)
        layers = torch.full((self.count + 1,), -1)
        for place, ((_, axis), slots) in enumerate(channels.members.items()):
            if axis == 0:
                numbers = self.number[slots]
                layers[numbers[layers[numbers] < 0]] = place
        self.sizes = layers[:-1].unique_consecutive(return_counts=True)[1].tolist()

    def __call__(self, scores: Scores, density: float, floor: float) -> Masks:
        """The masks of the best channels, by the mean score of all weights that go with each."""
        return self.masks(self.select(self.pooled(scores), density, floor), scores)

    def pooled(self, scores: Scores) -> Tensor:
        """A score for each channel, (P,): the mean over its weights, over the mean of its layer."""
        device = next(iter(scores.values())).device
        total, weights = torch.zeros(2, self.count + 1, device=device)
        for (name, axis), slots in self.channels.members.items():
            if name in scores:
                parts = scores[name].movedim(axis, 0).flatten(1)
                numbers = self.number[slots].to(device)
                total.index_add_(0, numbers, parts.sum(1).float())
                weights.index_add_(0, numbers, torch.full_like(parts[:, 0], parts.shape[1]).float())
        means = (total / weights.clamp(min=1))[:-1]
        return torch.cat([part / part.mean().clamp(min=1e-12) for part in means.split(self.sizes)])

    def select(self, values: Tensor, density: float, floor: float) -> Tensor:
        """The highest of the channels' scores (P,): bool (P,), an exact count; each layer has one.

        P - int((1 - density) * P) stay.
        """
        self.require(density)
        floor = max(floor, 1e-9)  # one of each layer, or nothing would pass
        require_room(self.sizes, density, floor)
        return select_top(lift_best(values.clone(), self.sizes, floor), density)

    def require(self, density: float) -> None:
        """Raises UsageError where a density keeps fewer channels than there are layers."""
        if count_at(density, self.count) < len(self.sizes):
            raise UsageError(f"density {density:g} keeps {count_at(density, self.count)} channels "
                             f"for {len(self.sizes)} layers: choose a higher one")

    def masks(self, kept: Tensor, like: Mapping[str, Tensor]) -> Masks:
        """The masks of weights, bool by name and in the shapes of `like`, of channels kept (P,)."""
        stays = torch.cat([kept, kept.new_ones(1)])
        masks = {n: torch.ones_like(t, dtype=torch.bool) for n, t in like.items()}
        for (name, axis), slots in self.channels.members.items():
            if name in masks:
                mask = masks[name].movedim(axis, 0)
                mask &= stays[self.number[slots].to(kept.device)].view(-1, *[1] * (mask.ndim - 1))
        return masks
