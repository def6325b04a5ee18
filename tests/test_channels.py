"""Channels in the graph of a network, and what is left of it without the dead ones."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.backbones import NETWORKS, build_network
from models.channels import channels_of
from models.compact import compacted
from models.widths import widths_of, with_widths
from pruning.masks import prunable

SIZE = 8
CLOSE = 1e-5


def steady_norms(network: nn.Module) -> nn.Module:
    """BatchNorm as after training: no number of it is one that it begins with."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in ((norm.running_mean, -0.3, 0.3), (norm.running_var, 0.5, 2),
                                      (norm.weight, 0.5, 1.5), (norm.bias, -0.3, 0.3)):  # fmt: skip
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return network.eval()


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return steady_norms(build())


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, size: int) -> float:
    """The largest difference of outputs, as a share of the largest output."""
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    before, after = one(images), other(images)
    assert before.std(0).max() > 100 * CLOSE * before.abs().max(), "it looks at its images"
    return float((before - after).abs().max() / before.abs().max())


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def require_equal(network: nn.Module, size: int) -> nn.Module:
    """The compacted network, once it is seen to have the outputs of the other."""
    small = compacted(network, size)
    assert difference(network, small, size) < CLOSE
    return small


# Each operation by itself: channels of `a` go through `body` to `b`, which reads them.


class Between(nn.Module):
    """Two convolutions and a head, and what lies between the two."""

    def __init__(self, body: nn.Module, outputs: int = 6, padding: int = 1, norm: bool = True):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.body = body
        self.b = nn.Conv2d(outputs, 5, 3, padding=padding)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.body(self.norm(self.a(x)))).relu().mean((2, 3)))


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Residual(nn.Module):
    """The sum of a convolution and what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Scaled(nn.Module):
    """A factor for each channel, as layers have in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(6, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class LastIsChannels(nn.Module):
    """Channels last, a linear layer, channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


PASSES = {
    "relu": nn.ReLU(), "relu in place": nn.ReLU(inplace=True), "relu6": nn.ReLU6(),
    "silu": nn.SiLU(), "hardswish": nn.Hardswish(), "prelu": nn.PReLU(6), "one prelu": nn.PReLU(),
    "max pool": nn.MaxPool2d(2), "average pool": nn.AvgPool2d(2), "dropout": nn.Dropout(),
    "padded average pool": nn.AvgPool2d(3, padding=1), "zeros around": nn.ZeroPad2d(1),
    "upsampling": nn.Upsample(scale_factor=2),
    "half as large again": nn.Upsample(scale_factor=1.5, mode="bilinear"), "scale": Scaled(),
    "gate": Gate(),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6), "residual": Residual(),
    "channels last": LastIsChannels(), "every other pixel": Calls(lambda x: x[:, :, ::2, ::2]),
}  # fmt: skip


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("name", PASSES)
def test_a_filter_of_zeros_is_removed_through(name: str, padding: int) -> None:
    network = seeded(lambda: Between(PASSES[name], padding=padding))
    with torch.no_grad():
        network.a.weight[[1, 4, 5]] = 0.0  # what is left are three constants
    small = require_equal(network, SIZE)
    if name not in ("gate", "residual", "channels last"):  # there it does not stay the same
        at_border = name in ("padded average pool", "zeros around", "depthwise")
        left = 6 if at_border else 4 if padding else 3  # one stands for all; none is the same
        assert len(small.a.weight) == left


@pytest.mark.parametrize("name", PASSES)
def test_a_channel_that_nothing_reads_is_removed_through(name: str) -> None:
    network = seeded(lambda: Between(PASSES[name]))
    with torch.no_grad():
        network.b.weight[:, [0, 3]] = 0.0
    small = require_equal(network, SIZE)
    if name not in ("gate", "residual", "channels last"):  # these read it themselves
        assert len(small.a.weight) == 4 and small.norm.num_features == 4
    if name == "depthwise":
        assert small.body.groups == 4
    if name == "gate":
        assert len(small.body.up.weight) == 6


def test_channels_pass_a_view_of_all_their_pixels() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * SIZE**2, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            return self.head(x.view(x.size(0), -1))

    network = seeded(Flat)
    with torch.no_grad():
        network.head.weight.view(4, 6, -1)[:, [0, 3]] = 0.0
    assert len(require_equal(network, SIZE).a.weight) == 4


HOLDS = {
    "a pool over channels": Calls(lambda x: F.adaptive_avg_pool2d(
        x.permute(0, 2, 3, 1), (SIZE, 6)).permute(0, 3, 1, 2)),
    "group norm": nn.GroupNorm(2, 6), "a number": Calls(lambda x: x.view(-1, 6, SIZE, SIZE)),
    "channels in two halves": Calls(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "a mean over channels": Calls(lambda x: x - x.mean(1, keepdim=True)),
    "softmax": nn.Softmax(1), "groups": nn.Conv2d(6, 6, 3, padding=1, groups=2),
    "shuffled": nn.ChannelShuffle(2), "flipped": Calls(lambda x: x.flip(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLDS)
def test_what_is_not_understood_holds_its_channels(name: str) -> None:
    network = seeded(lambda: Between(HOLDS[name]))
    with torch.no_grad():
        network.a.weight[:2] = 0.0
        network.b.weight[:, 4:] = 0.0
    small = require_equal(network, SIZE)
    assert small.a.weight.shape == network.a.weight.shape


def test_a_weight_that_something_else_looks_at_is_held() -> None:
    class Twice(Between):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.a.weight.mean()

    network = seeded(lambda: Twice(nn.ReLU()))
    with torch.no_grad():
        network.a.weight[:3] = 0.0
    assert require_equal(network, SIZE).a.weight.shape == network.a.weight.shape


def test_a_layer_that_is_used_twice_keeps_the_channels_of_both() -> None:
    class Shared(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = self.body(self.body(self.a(x)).relu())
            return self.head(self.b(x).relu().mean((2, 3)))

    network = seeded(lambda: Shared(nn.Conv2d(6, 6, 3, padding=1)))
    with torch.no_grad():
        network.body.weight[2], network.body.weight[:, 2] = 0.0, 0.0
        network.b.weight[:, 2] = 0.0
    small = require_equal(network, SIZE)
    assert small.body.weight.shape == (5, 5, 3, 3) and len(small.a.weight) == 5


class Bound(Between):
    """What it reads is constant, and another place looks at what would change."""

    def __init__(self, kind: str) -> None:
        super().__init__(nn.Conv2d(6, 6, 3), norm=False)
        self.kind = kind
        if kind == "tied weights":
            self.b = nn.Conv2d(6, 6, 3, padding=1)
            self.b.weight, self.head = self.body.weight, nn.Linear(6, 4)
        if kind == "a map of numbers":
            self.places = nn.Parameter(torch.rand(1, 6, SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.kind == "a layer used twice":
            x = self.body(x)
        if self.kind == "a map of numbers":
            x = x + self.places
        if self.kind == "a view changed in place":
            x[:, :, 2:].relu_()
        y = self.body(x)
        if self.kind == "a bias that something reads":
            y = y + self.body.bias.sum()
        return self.head(self.b(y).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [
    "a layer used twice", "tied weights", "a map of numbers", "a view changed in place",
    "a bias that something reads", "nothing"])  # fmt: skip
def test_a_constant_goes_nowhere_where_another_would_see_it(kind):
    network = seeded(lambda: Bound(kind))
    with torch.no_grad():
        network.a.weight[[1, 3]] = 0.0
        network.a.bias[[1, 3]] = torch.tensor([-0.7, 0.9])
    small = require_equal(network, SIZE)
    assert len(small.a.weight) == (4 if kind == "nothing" else 6)


class Own(nn.Conv2d):
    """A convolution whose forward is its own."""

    def __init__(self, how: str) -> None:
        super().__init__(6, 6, 3, padding=1, bias=how != "without its bias")
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, padding=1)
        return y if self.how == "without its bias" else y.relu() + self.bias.view(-1, 1, 1)


class Holds(nn.Module):
    """A tensor that is in no state, and one that differs from place to place."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.plain = kind, torch.rand(6, 1, 1) + 0.5
        self.register_buffer("places", (torch.rand(SIZE, SIZE) > 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.plain if self.kind == "a plain tensor" else self.places)


def into_a_view(x: Tensor) -> Tensor:
    x = x * 1.0
    x.flatten(2).add_(x.mean(1).flatten(1)[:, None])
    return x


def over_the_channels(x: Tensor) -> Tensor:
    return F.max_pool2d(x.permute(0, 2, 3, 1), (1, 3), 1, (0, 1)).permute(0, 3, 1, 2)


def as_tokens(norm: nn.Module) -> nn.Module:
    back = Calls(lambda x: x.transpose(1, 2).unflatten(2, (SIZE, SIZE)))
    return nn.Sequential(nn.Flatten(2), Calls(lambda x: x.transpose(1, 2)), norm, back)


ODD = {
    "a bias that it does not use": lambda: Own("without its bias"),
    "a bias that it adds later": lambda: Own("later"),
    "a plain tensor": lambda: Holds("a plain tensor"),
    "a mask of places": lambda: Holds("places"),
    "a mean of everything": lambda: Calls(lambda x: x - x.mean()),
    "a change of a view": lambda: Calls(into_a_view),
    "a pool over the channels": lambda: Calls(over_the_channels),
    "a norm of the tokens": lambda: as_tokens(nn.BatchNorm1d(SIZE * SIZE)),
    "a slope for each token": lambda: as_tokens(nn.PReLU(SIZE * SIZE)),
    "an uneven pool": lambda: nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=5),
    "a norm without statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "a weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1)),
}


@pytest.mark.parametrize("dead", ["filters", "columns"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_layer_gives_what_it_gave(name: str, dead: str) -> None:
    network = seeded(lambda: Between(ODD[name]()))
    with torch.no_grad():
        if dead == "filters":
            network.a.weight[[1, 4]] = 0.0
        else:
            network.b.weight[:, [0, 3]] = 0.0
    require_equal(network, SIZE)


def test_attention_reads_constants_and_keeps_its_width() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 4)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).flatten(2).transpose(1, 2)
            return self.head(self.attention(x, x, x)[0].mean(1))

    network = seeded(Attends)
    with torch.no_grad():
        network.a.weight[[0, 5]] = 0.0
    assert require_equal(network, SIZE).attention.in_proj_weight.shape == (18, 6)


def test_channels_side_by_side_are_removed_where_each_lies() -> None:
    class Dense(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            x = torch.cat([x, self.body(x)], 1)
            return self.head(self.b(x).relu().mean((2, 3)))

    network = seeded(lambda: Dense(nn.Conv2d(6, 4, 3), outputs=10))
    network.body.padding = (1, 1)
    with torch.no_grad():
        network.b.weight[:, [1, 7]] = 0.0
        network.body.weight[:, 1] = 0.0
    small = require_equal(network, SIZE)
    assert (len(small.a.weight), len(small.body.weight)) == (5, 3)
    assert small.b.weight.shape[1] == 8


def test_a_flattened_channel_takes_all_its_places_along() -> None:
    network = seeded(lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)))  # fmt: skip
    with torch.no_grad():
        network[0].weight[[0, 5]] = 0.0
    small = require_equal(network, SIZE)
    assert small[3].weight.shape == (4, 4 * 36) and len(small[0].weight) == 4


def test_an_emptied_layer_keeps_one_channel() -> None:
    network = seeded(lambda: Between(Residual()))
    with torch.no_grad():
        network.body.conv.weight.zero_()
        network.head.weight[:, 1:] = 0.0
        network.head.weight[:, 0] = 1.0
    small = require_equal(network, SIZE)
    assert len(small.b.weight) == 1


def test_dead_channels_stay_to_fill_a_block() -> None:
    network = seeded(lambda: Between(Residual()))
    with torch.no_grad():
        network.b.weight[:, :5] = 0.0
        network.body.conv.weight[:, :5] = 0.0
    assert len(compacted(network, SIZE).a.weight) == 1
    small = compacted(network, SIZE, block=4)
    assert len(small.a.weight) == 4 and difference(network, small, SIZE) < CLOSE
    again = compacted(small, SIZE, block=4)
    assert widths_of(small.state_dict(), again.state_dict()) == {}


def test_a_channel_dies_when_all_that_read_it_are_dead() -> None:
    network = seeded(lambda: Between(nn.Sequential(
        nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1))))  # fmt: skip
    with torch.no_grad():
        network.b.weight[:, :5] = 0.0  # so that but one filter of the last layer counts
        network.body[2].weight[5, :4] = 0.0  # which reads two channels
    small = require_equal(network, SIZE)
    assert [len(layer.weight) for layer in (small.body[0], small.body[2])] == [2, 1]


def test_a_network_with_nothing_dead_is_left_as_it_is() -> None:
    network = seeded(lambda: Between(Residual()))
    small = compacted(network, SIZE)
    assert widths_of(network.state_dict(), small.state_dict()) == {}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name])


def test_compacting_leaves_the_network_and_its_mode() -> None:
    network = seeded(lambda: Between(nn.ReLU())).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    compacted(network, SIZE)
    channels_of(network, SIZE)
    assert network.training
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


# Whole networks

TINY = ("timm:test_resnet", "timm:test_efficientnet", "timm:test_vit", "timm:test_byobnet",
        "timm:test_convnext", "timm:test_nfnet")  # fmt: skip
HERE = ("resnet20", *TINY)
MORE = (*sorted(set(NETWORKS) - set(HERE)), "timm:tf_efficientnet_lite0", "timm:ghostnet_100",
        "timm:hrnet_w18_small", "timm:res2net50_26w_4s", "timm:repvgg_a0", "timm:mixer_s32_224",
        "timm:skresnet18", "timm:mobilevit_xxs", "torchvision:densenet121", "torchvision:googlenet",
        "torchvision:shufflenet_v2_x1_0", "torchvision:mobilenet_v3_small",
        "torchvision:regnet_y_400mf", "torchvision:convnext_tiny", "torchvision:squeezenet1_1",
        "torchvision:swin_t", "torchvision:resnext50_32x4d")  # fmt: skip
SIZES = {"timm:test": 160, "resnet": 32, "timm:mix": 224, "timm:mob": 256, "torchvision:sw": 224}


def size_of(name: str) -> int:
    return next((size for start, size in SIZES.items() if name.startswith(start)), 64)


@torch.no_grad()
def sparse(name: str, density: float, seed: int, of: str) -> nn.Module:
    """A network with random weights, masked at random by weight, filter, column or layer.

    The weights that stay are scaled up, so that the images still tell in its outputs.
    """
    network = seeded(partial(build_network, name, "none", 10, seed), seed)
    for weight in list(prunable(network).values())[1:-1]:
        shape = {"weights": weight.shape, "filters": (len(weight), *[1] * (weight.ndim - 1)),
                 "columns": (1, weight.shape[1], *[1] * (weight.ndim - 2)), "layers": ()}[of]
        kept = torch.rand(shape) < density
        scale = min(max(1.0, 0.5 / density), 4.0) ** 0.5
        weight.mul_(kept.to(weight)).mul_(scale)
    return network


@settings(max_examples=2)
@given(density=st.sampled_from([0.5, 0.1, 0.02, 0.005]), seed=st.integers(0, 99),
       of=st.sampled_from(["weights", "filters", "columns", "layers"]))  # fmt: skip
@pytest.mark.parametrize("name", HERE)
def test_a_compacted_network_has_the_same_outputs(name, density, seed, of):
    if of != "weights":
        density = max(density, 0.5)
    network = sparse(name, density, seed, of)
    small = compacted(network, size_of(name))
    images = torch.randn(2, 3, *[size_of(name)] * 2)
    with torch.no_grad():
        before, after = network(images), small(images)
    assert (before - after).abs().max() <= CLOSE * before.abs().max().clamp(min=1)
    assert parameters(small) <= parameters(network)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["weights", "filters", "columns", "layers"])
@pytest.mark.parametrize("name", MORE)
def test_more_compacted_networks_have_the_same_outputs(name, of):
    network = sparse(name, 0.02 if of == "weights" else 0.6, 3, of)
    small = compacted(network, size_of(name))
    images = torch.randn(2, 3, *[size_of(name)] * 2)
    with torch.no_grad():
        before, after = network(images), small(images)
    assert (before - after).abs().max() <= CLOSE * before.abs().max().clamp(min=1)


@pytest.mark.parametrize("name, fewer", [("resnet18", 0.5), ("mobilenet_v2", 0.5)])
def test_half_the_filters_gone_is_less_than_two_thirds_of_the_parameters(name, fewer):
    network = sparse(name, fewer, 0, "filters")
    assert parameters(compacted(network, 64)) < parameters(network) * 2 / 3


# Widths


@pytest.mark.parametrize("widths", [
    {"a.weight": [7, 3, 3, 3]}, {"a.weight": [0, 3, 3, 3]}, {"a.weight": [6, 3]},
    {"a.weight": [6.0, 3, 3, 3]}, {"a.weight": "6333"}, {"c.weight": [1]}, {"norm.extra": [6]},
    {"a.weight": [True, 3, 3, 3]}, {"norm.running_mean": [-1]}, {"a.bias": [10**12]},
    {"a.training": [1]}, {"body.weight": [1]},
])  # fmt: skip
def test_widths_that_the_network_cannot_have_are_refused(widths):
    with pytest.raises(ValueError):
        with_widths(Between(nn.ReLU()), widths)


def test_layers_follow_their_widths() -> None:
    network = with_widths(Between(nn.Conv2d(6, 6, 3, groups=6, bias=False)), {
        "a.weight": [4, 3, 3, 3], "a.bias": [4], "norm.weight": [4], "norm.bias": [4],
        "norm.running_mean": [4], "norm.running_var": [4], "body.weight": [4, 1, 3, 3],
        "body.bias": [4], "b.weight": [5, 4, 3, 3], "head.weight": [4, 5]})  # fmt: skip
    assert (network.a.out_channels, network.norm.num_features, network.b.in_channels) == (4, 4, 4)
    assert network.body.groups == network.body.in_channels == 4
    assert torch.equal(network.body.bias, torch.zeros(4))
    assert network.eval()(torch.rand(2, 3, SIZE, SIZE)).shape == (2, 4)
