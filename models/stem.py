"""The first convolution, whose gradient with respect to the images trains the prompt.

Dense training never asks for that gradient, and on a CPU it is slow where the convolution skips
pixels, as a stem does. Here it is an ordinary convolution that yields all pixels of a stride's
cell as channels, in half the time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def speed_up_stem(network: nn.Module) -> nn.Module:
    """Give the network's first convolution the gradient below, if it is of the kind; in place.

    Its class alone changes: parameters, state-dict keys, hooks and output stay what they are, and
    what torch can do with a convolution still works: derivatives of any order, forwards too,
    torch.func, TorchScript, torch.fx, export. The images' gradient is equal up to rounding.
    """
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and type(first) is nn.Conv2d and _strided(first):
        first.__class__ = Stem
    return network


def _strided(conv: nn.Conv2d) -> bool:
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    sides = (conv.kernel_size, conv.stride, conv.padding)
    square = all(isinstance(pair, tuple) and pair[0] == pair[1] for pair in sides)
    return plain and square and conv.stride[0] > 1


class Stem(nn.Conv2d):
    """A strided convolution of images (B, 3, h, w); on the CPU with `images_gradient`."""

    def forward(self, images: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102
            if _ours(images):  # on a line of its own: torch.jit.script leaves out what is inside
                out = _Convolution.apply(images, self.weight, self.stride[0], self.padding[0])
                return out if self.bias is None else out + self.bias.view(-1, 1, 1)
        return F.conv2d(images, self.weight, self.bias, self.stride, self.padding)


def _ours(images: Tensor) -> bool:
    """Whether a batch of images wants its gradient, and nobody else chooses the kernels."""
    if not isinstance(images, Tensor) or not images.requires_grad:  # torch.fx has no tensors
        return False
    here = images.device.type == "cpu" and images.dim() == 4
    return here and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def images_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: int
) -> Tensor:
    """What torch.nn.grad.conv2d_input gives: the gradient of the input, (B, C, *size).

    `grad` (B, M, h, w) is that of the output, `weight` (M, C, k, k). Pixel stride * q + r gets
    from output q - t the weight r + stride * t: for each r that is a convolution over t, and
    its results lie side by side, as pixel_shuffle puts them.
    """
    outputs, channels, side, _ = weight.shape
    taps = -(-side // stride)
    missing = taps * stride - side
    cells = F.pad(weight, (0, missing, 0, missing))
    cells = cells.view(outputs, channels, taps, stride, taps, stride).flip(2, 4)
    kernel = cells.permute(1, 3, 5, 0, 2, 4).reshape(-1, outputs, taps, taps)
    pixels = F.pixel_shuffle(F.conv2d(grad, kernel, padding=taps - 1), stride)
    wanted = [padding + length for length in size]
    short = [max(0, want - have) for want, have in zip(wanted, pixels.shape[-2:], strict=True)]
    pixels = F.pad(pixels, (0, short[1], 0, short[0]))
    return pixels[..., padding : wanted[0], padding : wanted[1]]


class _Convolution(torch.autograd.Function):
    """conv2d without bias; both gradients can be differentiated again, and forwards too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        return F.conv2d(images, weight, stride=stride, padding=padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
        images, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(images, weight)
        ctx.save_for_forward(images, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        for_images = for_weight = None
        if ctx.needs_input_grad[0]:
            size = images.shape[-2:]
            for_images = images_gradient(grad, weight, size, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            for_weight = torch.nn.grad.conv2d_weight(
                images, weight.shape, grad, ctx.stride, ctx.padding
            )
        return for_images, for_weight, None, None

    @staticmethod
    def jvp(ctx: Any, images_move: Tensor, weight_move: Tensor, *_: None) -> Tensor:
        images, weight = ctx.saved_tensors
        sides = {"stride": ctx.stride, "padding": ctx.padding}
        return F.conv2d(images_move, weight, **sides) + F.conv2d(images, weight_move, **sides)
