"""The stem's own gradient with respect to the images is the convolution's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, vmap

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


def backward(conv: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The gradient of a sum over the output with respect to the images."""
    images = images.clone().requires_grad_()
    return torch.autograd.grad(conv(images).sin().sum(), images)[0]


def of_weights(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """The gradient of each image by itself with respect to the weights."""
    def loss(weight: Tensor, image: Tensor) -> Tensor:
        return functional_call(conv, {"weight": weight}, (image[None],)).sin().sum()

    both = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0))
    return both(conv.weight.detach(), images)[0]


def forwards(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """How the output changes as images and weights do."""
    given = images.clone().requires_grad_(), conv.weight.detach()
    with forward_ad.dual_level():
        moving, weight = (forward_ad.make_dual(tensor, tensor.cos()) for tensor in given)
        out = functional_call(conv, {"weight": weight}, (moving,))
        return forward_ad.unpack_dual(out).tangent


def loss_of(conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    return lambda images: conv(images).sin().sum()


WAYS = {
    "torch.func.grad": lambda conv, x: grad(loss_of(conv))(x),
    "jacobian": lambda conv, x: jacrev(lambda x: conv(x).sum((1, 2, 3)))(x),
    "hessian": lambda conv, x: hessian(loss_of(conv))(x),
    "hessian, backwards": lambda conv, x: jacrev(jacrev(loss_of(conv)))(x),
    "each image's own": lambda conv, x: vmap(grad(loss_of(conv)))(x),
    "each image's own of the weights": of_weights,
    "forwards": forwards,
    "one image": lambda conv, x: backward(conv, x[0]),
    "no image": lambda conv, x: backward(conv, x[:0]),
    "TorchScript": lambda conv, x: backward(torch.jit.script(conv), x),
    "a trace": lambda conv, x: backward(torch.jit.trace(conv, x.clone().requires_grad_()), x),
    "torch.fx": lambda conv, x: backward(torch.fx.symbolic_trace(nn.Sequential(conv)), x),
    "export": lambda conv, x: torch.export.export(conv, (x.clone().requires_grad_(),)).module()(x),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # which go on working
@pytest.mark.parametrize("way", WAYS)
def test_what_a_convolution_can_do_a_stem_can(way):
    images = torch.arange(2 * 3 * 5 * 6, dtype=torch.float64).view(2, 3, 5, 6).sin()
    plain, stem = convolution(True), speed_up_stem(nn.Sequential(convolution(True)))[0]
    expected, found = WAYS[way](plain, images), WAYS[way](stem, images)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


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
