"""The networks, one row each, and how they get their weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from models.pretrained import hub_state, misfit, read_state
from models.resnet_cifar import resnet20
from utils.config import flag, not_one_of, word
from utils.errors import UsageError, VPNsError
from utils.seed import key_seed
from utils.tensors import SUFFIXES

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Backbone:
    """One network. `build(classes)` makes it with random weights and a head of that size.

    `named` gives its named weights: a torchvision enum entry, or a file in `models/weights`.
    Sizes are in pixels: of the images, of the canvas, and the width of the prompt's frame.
    """

    build: Callable[[int], nn.Module]
    head: str
    named: Mapping[str, str]
    weights: str = "imagenet"
    source_classes: int = 1000
    input_size: int = 224
    output_size: int = 224
    pad_size: int = 16
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def _torchvision(name: str, head: str, weights: str) -> Backbone:
    def build(classes: int) -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=classes)

    return Backbone(build, head, MappingProxyType({"imagenet": weights}))


NETWORKS: dict[str, Backbone] = {
    "resnet18": _torchvision("resnet18", "fc", "ResNet18_Weights.IMAGENET1K_V1"),
    "resnet50": _torchvision("resnet50", "fc", "ResNet50_Weights.IMAGENET1K_V2"),
    "vgg16": _torchvision("vgg16", "classifier.6", "VGG16_Weights.IMAGENET1K_V1"),
    "vgg16_bn": _torchvision("vgg16_bn", "classifier.6", "VGG16_BN_Weights.IMAGENET1K_V1"),
    "mobilenet_v2": _torchvision(
        "mobilenet_v2", "classifier.1", "MobileNet_V2_Weights.IMAGENET1K_V1"
    ),
    "resnet20": Backbone(
        resnet20,
        "fc",
        MappingProxyType({"fashion_mnist": "resnet20_fashion_mnist.safetensors"}),
        weights="fashion_mnist",
        source_classes=10,
        input_size=16,
        output_size=16,
        pad_size=2,
    ),
}
ALIASES = {"vgg": "vgg16"}


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and where its weights come from. An alias becomes the network's name."""

    network: str = flag(
        "resnet18", "the network to prune", choices=(*NETWORKS, *ALIASES), group="network"
    )
    weights: str | None = flag(
        None,
        "pre-trained weights: imagenet, fashion_mnist, none, or a .safetensors, .pt or .pth file "
        "with the network's own keys (default: the network's: imagenet; resnet20: fashion_mnist)",
        parse=word,
        group="network",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", ALIASES.get(self.network, self.network))


def backbone(name: str) -> Backbone:
    """The row of a network or alias. Raises UsageError for a name that is not one."""
    row = NETWORKS.get(ALIASES.get(name, name))
    if row is None:
        raise UsageError(f"network {name!r} is not one of {', '.join((*NETWORKS, *ALIASES))}")
    return row


def build_network(
    name: str, weights: str | None = None, classes: int | None = None, seed: int = 0
) -> nn.Module:
    """A network on the CPU with its weights loaded, in training mode.

    `weights` is a name of the network's, `none`, a path to a file with the network's own keys,
    or None for the network's default. With `classes` None the source head stays: 1000-way for
    torchvision networks, 10-way for resnet20, of the size in the file for a path. A number
    gives a head with that many outputs, a new one where the loaded head has another size.
    New values depend on `seed` alone and leave torch's random state as it was.
    Raises UsageError for weights that the network does not have, VPNsError for weights that
    cannot be had or do not fit.
    """
    row = backbone(name)
    chosen = row.weights if weights is None else weights
    state = _load(name, row, chosen)
    if state is None:
        return _seeded(row, row.source_classes if classes is None else classes, seed)
    loaded = _head_size(row, state) or row.source_classes
    network = _seeded(row, loaded if classes is None else classes, seed)
    fresh = network.state_dict()
    if classes not in (None, loaded):
        state = state | {key: fresh[key] for key in fresh if key.rpartition(".")[0] == row.head}
    problem = misfit(fresh, state)
    if problem:
        raise VPNsError(f"the weights {chosen} do not fit {name}: {problem}")
    network.load_state_dict(state)
    return network


def _seeded(row: Backbone, classes: int, seed: int) -> nn.Module:
    """Build with a random state of its own (torch's CPU generator draws all the values)."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(key_seed(seed, "network"))
        return row.build(classes)


def _head_size(row: Backbone, state: Mapping[str, Tensor]) -> int | None:
    weight = state.get(f"{row.head}.weight")
    return len(weight) if weight is not None and weight.ndim == 2 else None


def _load(name: str, row: Backbone, weights: str) -> dict[str, Tensor] | None:
    """The state dict that `weights` stands for; None for `none`."""
    path = weights_file(name, weights)
    if path is not None:
        return read_state(path)
    if weights == "none":
        return None
    source = row.named[weights]
    return read_state(SHIPPED / source) if source.endswith(SUFFIXES) else hub_state(source)


def weights_file(name: str, weights: str) -> Path | None:
    """The file that `weights` is, which may be missing; None for a name that the network has.

    Raises UsageError for a name that it has not.
    """
    names, path = (*backbone(name).named, "none"), Path(weights).expanduser()
    if weights in names:
        return None
    of_others = weights in {n for row in NETWORKS.values() for n in row.named}
    if of_others or not (path.suffix or path.exists()):
        raise UsageError(f"{name} has no weights {not_one_of(weights, names, ' or a file')}")
    return path
