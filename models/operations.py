"""Operations through which channels pass: where they lie afterwards, and whether they stay steady.

A rule is told the channels of the first tensor of an operation, that tensor, the result and the
other arguments; it gives the channels of the result, or None for what it does not know.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


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

    def without(self, dims: Collection[int]) -> "Flow | None":
        """The channels once other dimensions than theirs are gone."""
        if self.axis in dims:
            return None
        return self._replace(axis=self.axis - sum(dim < self.axis for dim in dims))

    def repeated(self, places: int) -> "Flow":
        """Each channel as so many, one after the other."""
        slots, steady = (part.repeat_interleave(places) for part in self[1:])
        return Flow(self.axis, slots, steady)


def first_values(x: Tensor, axis: int) -> Tensor:
    """The first value of each channel, (C,)."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)[:, 0].clone()


def same(flow: Flow, x: Tensor, result: Tensor, *args: Any) -> Flow:
    """No number changes, or each by itself."""
    return flow


def over_images(flow: Flow, x: Tensor, result: Tensor, *args: Any) -> Flow | None:
    """Pools and the like, which go over the last two dimensions."""
    return flow if flow.axis < result.ndim - 2 else None


def average(flow: Flow, x: Tensor, result: Tensor, *args: Any) -> Flow | None:
    """avg_pool2d: kernel, stride, padding, ceil mode, whether it counts padding, a divisor."""
    padded = any(np.atleast_1d(args[2])) if len(args) > 2 else False
    uneven = padded or any(args[5:])
    return over_images(flow.beside_zeros(x) if uneven else flow, x, result)


def dropout(flow: Flow, x: Tensor, result: Tensor, share: float, training: bool) -> Flow | None:
    """It is asleep in eval mode, unless a forward says otherwise."""
    return None if training else flow


def mean(
    flow: Flow, x: Tensor, result: Tensor, dims: Any, keeps: bool = False, *args: Any
) -> Flow | None:
    """Over other dimensions than that of the channels."""
    gone = [dim % x.ndim for dim in dims]
    shorter = flow.without(gone)
    return flow if keeps and shorter else shorter


def squeeze(flow: Flow, x: Tensor, result: Tensor, dims: Any = None) -> Flow | None:
    """Dimensions of one place go."""
    dims = range(x.ndim) if dims is None else [dim % x.ndim for dim in np.atleast_1d(dims)]
    return flow.without([dim for dim in dims if x.shape[dim] == 1])


def part(flow: Flow, x: Tensor, result: Tensor, along: int = 0, *args: Any) -> Flow | None:
    """A slice of another dimension than that of the channels, or of all of them."""
    return flow if along % x.ndim != flow.axis or x.shape == result.shape else None


def flatten(flow: Flow, x: Tensor, result: Tensor, start: int = 0, *args: Any) -> Flow | None:
    """Dimensions after the channels, or the channels with all that follow."""
    start %= x.ndim
    if start > flow.axis:
        return flow
    if start < flow.axis or result.ndim != start + 1:
        return None
    return flow.repeated(math.prod(x.shape[start + 1 :]))


def view(flow: Flow, x: Tensor, result: Tensor, shape: Any) -> Flow | None:
    """`view(B, -1)` alone, which flattens: with another number it minds the width."""
    if flow.axis != 1 or len(shape) != 2 or shape[1] != -1 or len(result) != len(x):
        return None
    return flow.repeated(math.prod(x.shape[2:]))


def permute(flow: Flow, x: Tensor, result: Tensor, dims: Any) -> Flow:
    """Dimensions in another order."""
    return flow._replace(axis=[dim % x.ndim for dim in dims].index(flow.axis))


def transpose(flow: Flow, x: Tensor, result: Tensor, one: int, other: int) -> Flow:
    """Two dimensions change places."""
    one, other = one % x.ndim, other % x.ndim
    return flow._replace(axis={one: other, other: one}.get(flow.axis, flow.axis))


# By ATen's names, without the mark of what happens in place.
OPERATIONS: dict[str, Callable[..., Flow | None]] = {
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "to", "hardswish"), same),
    **dict.fromkeys(
        ("max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
         "upsample_bilinear2d", "upsample_bicubic2d"), over_images),
    "avg_pool2d": average, "dropout": dropout, "feature_dropout": dropout, "mean": mean,
    "squeeze": squeeze, "slice": part, "flatten": flatten, "view": view, "reshape": view,
    "permute": permute, "transpose": transpose,
}  # fmt: skip
