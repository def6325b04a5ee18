"""The stem's own gradient with respect to the images is the convolution's."""

import pytest
import torch
from torch import nn

from models.backbones import NETWORKS, build_network
from models.stem import Stem, images_gradient, speed_up_stem


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize(("side", "padding"), [(1, 0), (3, 1), (3, 0), (7, 3), (8, 2)])
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (12, 10)])
def test_the_gradient_of_the_images_is_the_convolution_s(stride, side, padding, size):
    draw = torch.Generator().manual_seed(side)
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=draw, requires_grad=True)
    weight = torch.randn(5, 3, side, side, dtype=torch.float64, generator=draw)
    out = nn.functional.conv2d(images, weight, stride=stride, padding=padding)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=draw)
    (expected,) = torch.autograd.grad(out, images, grad)
    found = images_gradient(grad, weight, size, stride, padding)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def convolution(bias: bool = False) -> nn.Conv2d:
    torch.manual_seed(7)
    return nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias, dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
def test_a_stem_has_the_output_and_the_gradients_of_the_convolution_it_was(bias):
    plain, stem = convolution(bias), speed_up_stem(nn.Sequential(convolution(bias)))[0]
    assert type(stem) is Stem
    results = []
    for conv in (plain, stem):
        images = torch.arange(192, dtype=torch.float64).view(1, 3, 8, 8).sin().requires_grad_()
        out = conv(images)
        out.square().sum().backward()
        results.append([out, images.grad, *(p.grad for p in conv.parameters())])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_second_derivatives_go_through_a_stem():
    stem = speed_up_stem(nn.Sequential(convolution()))[0]
    images = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)

    def run(images, weight):
        return torch.func.functional_call(stem, {"weight": weight}, (images,))

    inputs = (images, stem.weight.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_networks_keep_their_keys_and_only_strided_stems_change(name):
    network = build_network(name, "none", 10)
    changed = [module for module in network.modules() if isinstance(module, Stem)]
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert changed == ([convs[0]] if convs[0].stride != (1, 1) else [])
    assert list(network.state_dict()) == list(NETWORKS[name].build(10).state_dict())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.Conv2d(3, 4, 3, stride=2, dilation=2),
        nn.Conv2d(3, 4, (3, 5), stride=2),
        nn.Conv2d(3, 4, 3, stride=(2, 1)),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 4, stride=2, padding="valid"),
    ],
    ids=["stride 1", "groups", "dilation", "oblong", "two strides", "reflecting", "named padding"],
)
def test_other_convolutions_are_left_alone(conv):
    assert type(speed_up_stem(nn.Sequential(conv))[0]) is nn.Conv2d


def test_autocast_still_chooses_the_type():
    stem = speed_up_stem(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2)))[0]
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert stem(images).dtype == torch.bfloat16
