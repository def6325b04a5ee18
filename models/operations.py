"""Operations that move numbers or average them: where the channels of a tensor lie afterwards."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# By ATen's names, without the mark of what happens in place.
MOVES = {
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "alias", "avg_pool2d", "clone", "contiguous",
    "detach", "dropout", "feature_dropout", "flatten", "max_pool2d", "mean", "permute", "reshape",
    "slice", "squeeze", "to", "transpose", "upsample_bicubic2d", "upsample_bilinear2d",
    "upsample_nearest2d", "view",
}  # fmt: skip


class Flow(NamedTuple):
    """The channels in a tensor of the graph: which dimension they are, and the slot of each.

    `steady` (C,) marks channels that have the same value everywhere, whatever the images are.
    """

    axis: int
    slots: Tensor
    steady: Tensor

    def beside_zeros(self, x: Tensor) -> "Flow":
        """A channel of `x` with zeros around it is steady only if it is zero itself."""
        return self._replace(steady=self.steady & (first_values(x, self.axis) == 0))


def first_values(x: Tensor, axis: int) -> Tensor:
    """The first value of each channel, (C,)."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)[:, 0].clone()


def moved(
    flow: Flow, x: Tensor, work: Callable[[Tensor], Tensor], shape: torch.Size
) -> Flow | None:
    """The channels of `work(x)`, which has this shape: `work` is shown their numbers instead.

    It is shown one channel more, so that an operation that minds how many there are fails or mixes
    them. None unless each place along one dimension has one number, and each number is somewhere.
    Where `work` shrinks ones, as averages with zeros do, a channel counts as one beside zeros.
    """
    own, before, after = len(flow.slots), x.shape[: flow.axis], x.shape[flow.axis + 1 :]
    numbers = torch.arange(own + 1, dtype=torch.float64)
    shown = numbers.view(-1, *[1] * len(after)).repeat(*before, 1, *after)
    ones = work(torch.ones_like(shown))
    flow = flow if ones.allclose(ones.new_ones(())) else flow.beside_zeros(x)
    result = work(shown) / ones
    for axis in range(result.ndim):
        lines = result.movedim(axis, 0).flatten(1)
        order = lines[:, 0].round().long()
        if torch.allclose(lines, order[:, None].double()):
            order = order[order < own]
            whole = torch.equal(order.unique(), torch.arange(own))
            fits = result.ndim == len(shape) and len(order) == shape[axis]
            return Flow(axis, flow.slots[order], flow.steady[order]) if whole and fits else None
    return None
