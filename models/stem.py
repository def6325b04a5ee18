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

    Its class alone changes: parameters, state-dict keys, hooks and output stay what they are.
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
        if not images.requires_grad or images.device.type != "cpu" or _rewritten():
            return super().forward(images)
        out = _Convolution.apply(images, self.weight, self.stride[0], self.padding[0])
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)


def _rewritten() -> bool:
    """Whether somebody else chooses the kernels: autocast or the compiler."""
    return torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


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
    """conv2d without bias; both gradients can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, stride=stride, padding=padding)

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
