"""A network that cannot take the images of a run is refused before any work."""

from functools import partial

import pytest
import torch
import torchvision
from conftest import tiny_network
from torch import Tensor, nn

from models.backbones import NETWORKS
from models.fit import require_fit, require_rest
from utils.errors import UsageError


class Forward(nn.Module):
    """A network with the given forward pass; its one layer counts the classes."""

    def __init__(self, forward):
        super().__init__()
        self.head = nn.Linear(3, 5)
        self.result = forward

    def forward(self, x: Tensor):
        return self.result(self.head(x.mean((2, 3))))


def refused(build, words, sizes=(8,), batch=2):
    with pytest.raises(UsageError, match=words) as error:
        require_fit("net", build, sizes, batch)
    assert "\n" not in str(error.value)


def test_a_network_that_gives_logits_is_taken():
    require_fit("net", tiny_network, [8, 16])


def test_an_image_too_small_is_named_with_the_networks_reason():
    build = partial(NETWORKS["vgg16"].build, 10)
    require_fit("vgg16", build, [32])
    refused(build, "net cannot train on images of 16 px: .*Output size is too small", [32, 16])


def test_a_forward_that_returns_a_tuple_is_refused():
    build = partial(torchvision.models.googlenet, weights=None, num_classes=5, init_weights=False)
    refused(build, "its forward returns a tuple, not logits", [64])


def test_a_distilled_transformer_is_refused_in_training_mode():
    timm = pytest.importorskip("timm")

    def build():
        network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5)
        network.set_distilled_training(True)
        return network

    refused(build, "its forward returns a tuple, not logits", [224])


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda y: {"logits": y}, "returns a dict, not logits"),
        (lambda y: None, "returns a NoneType, not logits"),
        (lambda y: y.detach(), "its logits have no gradient"),
        (lambda y: y[:, :, None], r"shape \(2, 5, 1\), not \(B, classes\)"),
        (lambda y: y.mean(0, keepdim=True), r"shape \(1, 5\), not \(B, classes\)"),
    ],
)
def test_anything_but_logits_is_refused(forward, words):
    refused(lambda: Forward(forward), words)


def fail(error):
    raise error


@pytest.mark.parametrize(
    "error", [AssertionError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError]
)
def test_a_fault_of_the_forward_is_one_line(error):
    text = "height (8) differs from 224\nsecond line"
    refused(lambda: Forward(lambda y: fail(error(text))), r"8 px: height \(8\) differs from 224$")
    refused(lambda: Forward(lambda y: fail(error())), f"its forward raises {error.__name__}")


def test_a_network_that_is_not_built_without_memory_is_tried_on_the_cpu():
    def build():
        if torch.get_default_device().type == "meta":
            raise NotImplementedError("no such operation here")
        return tiny_network()

    require_fit("net", build, [8])


def test_a_forward_that_looks_at_values_is_tried_on_the_cpu():
    require_fit("net", lambda: Forward(lambda y: y * float(y.sum() < 1e9)), [8])


@pytest.mark.parametrize("looks", [False, True])
def test_the_random_state_stays_as_it_was(looks):
    before = torch.get_rng_state()
    scale = (lambda y: y * float(y.detach().sum())) if looks else (lambda y: y)
    require_fit("net", lambda: Forward(lambda y: nn.functional.dropout(scale(y))), [8])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_last_batch_of_one_image_is_refused_where_batchnorm_sees_one_value():
    def build():
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten())

    require_rest("net", build, [8], rest=2)
    with pytest.raises(UsageError, match="one image of 8 px.*more than 1 value.*--batch_size"):
        require_rest("net", build, [8], rest=1)


def test_a_last_batch_of_one_image_is_taken_where_it_has_several_values():
    require_rest("net", tiny_network, [8], rest=1)
