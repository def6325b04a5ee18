"""What the gradient of the images costs in a network's first convolution, torch's way and ours."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.contenders import Bench
from benchmarks.timing import Ratio, Turns, ratios
from models.stem import Stem
from utils.errors import UsageError


def first_convolution(network: nn.Module) -> nn.Conv2d:
    """The layer that sees the images."""
    return next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))


def compare(
    bench: Bench, repeats: int, iterations: int
) -> tuple[list[dict[str, Any]], dict[str, Ratio]]:
    """Rows of a table, and the ratios over torch's forward pass and gradient of one batch.

    Raises UsageError for a network whose first convolution the program leaves as it is.
    """
    plain, ours = map(first_convolution, (bench.plain, bench.network))
    if not isinstance(ours, Stem):
        raise UsageError(f"--stem: the first convolution of {bench.case.network} has no stride")
    contenders = {"stem_torch": passes(bench, plain), "stem": passes(bench, ours)}
    contenders["stem_forward"] = passes(bench, plain, backward=False)
    seconds = Turns(contenders, repeats, iterations).run()
    found = {name: ratios(s, seconds["stem_torch"]) for name, s in seconds.items()}
    rows = [
        {"what": name, "ms": 1000 * statistics.median(s), "/ stem_torch": found[name]}
        for name, s in seconds.items()
    ]
    return rows, {name: ratio for name, ratio in found.items() if name != "stem_torch"}


def passes(bench: Bench, conv: nn.Conv2d, backward: bool = True) -> Callable[[], None]:
    """Forward and backward to the images, none to the weights; or the forward pass alone."""
    images = bench.prompted[0][0].clone().requires_grad_()
    conv.requires_grad_(False)
    grad = torch.rand_like(conv(images))

    def run() -> None:
        out = conv(images)
        if backward:
            torch.autograd.grad(out, images, grad)

    return run
