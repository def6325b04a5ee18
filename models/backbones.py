"""The networks, one row each, and how they get their weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from models.containers import find_state, require_finite
from models.families import FAMILIES, family_row
from models.pretrained import hub_state, misfit, read_state, timm_state
from models.resnet_cifar import ResNetCifar, resnet20
from models.rows import Backbone, colours
from models.widths import Widths
from utils.checkpoint import has_meta, read_meta
from utils.config import flag, not_one_of, path_or_word, word
from utils.errors import UsageError, VPNsError, message_of, note
from utils.seed import key_seed
from utils.tensors import SUFFIXES, load_into, read_tensors, understood

SHIPPED = Path(__file__).parent / "weights"


class Pool(nn.AdaptiveAvgPool2d):
    """Adaptive pooling that leaves images of its own size alone, as pooling them would.

    VGG's, at 224 pixels: on a GPU its gradient has no deterministic kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, *output_size)."""
        return x if x.shape[-2:] == torch.Size(self.output_size) else super().forward(x)


def _torchvision(name: str, head: str, source: str) -> Backbone:
    def build(classes: int) -> nn.Module:
        network = get_model(name, num_classes=classes)
        for layer, module in list(network.named_children()):
            if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size != (1, 1):
                setattr(network, layer, Pool(module.output_size))
        return network

    return Backbone(build, head, "imagenet", source)


NETWORKS: dict[str, Backbone] = {
    "resnet18": _torchvision("resnet18", "fc", "ResNet18_Weights.IMAGENET1K_V1"),
    "resnet50": _torchvision("resnet50", "fc", "ResNet50_Weights.IMAGENET1K_V2"),
    "vgg16": _torchvision("vgg16", "classifier.6", "VGG16_Weights.IMAGENET1K_V1"),
    "vgg16_bn": _torchvision("vgg16_bn", "classifier.6", "VGG16_BN_Weights.IMAGENET1K_V1"),
    "mobilenet_v2": _torchvision(
        "mobilenet_v2", "classifier.1", "MobileNet_V2_Weights.IMAGENET1K_V1"
    ),
    "resnet20": Backbone(
        resnet20, "fc", "fashion_mnist", "resnet20_fashion_mnist.safetensors",
        source_classes=10, input_size=16, output_size=16, pad_size=2,
    ),  # fmt: skip
    **{
        f"resnet{6 * depth + 2}": Backbone(
            partial(ResNetCifar, depth), "fc", "none", "", source_classes=10, input_size=32,
            output_size=32, pad_size=2)
        for depth in (5, 7, 9)
    },
}
ALIASES = {"vgg": "vgg16", "efficientnet_lite0": "timm:tf_efficientnet_lite0"}


def network_name(text: str) -> str:
    """A parser for the name of a network; ValueError for another word."""
    names = (*NETWORKS, *ALIASES)
    if text not in names and ":" not in text:
        raise ValueError(not_one_of(text, names, ", timm:NAME, torchvision:NAME, module:function"))
    return text


def colours_named(text: str) -> str:
    """A parser for `--normalisation`."""
    colours(text)
    return text


@dataclass(frozen=True)
class NetworkConfig:
    """The flags of the network; an alias becomes the network's name."""

    network: str = flag(
        "resnet18", f"the network to prune: {', '.join(NETWORKS)}, timm:NAME, torchvision:NAME, or "
        "module:function, which runs your function of the number of classes", parse=network_name)
    weights: str | None = flag(
        None, "pre-trained weights: imagenet, fashion_mnist, none, or a file that somebody's "
        "training has saved (default: the network's: imagenet; resnet20: fashion_mnist)",
        parse=path_or_word)
    normalisation: str | None = flag(
        None, "what the weights were trained with: imagenet, cifar10, half (0.5), or M,M,M/S,S,S "
        "(default: the network's)", parse=colours_named)
    weights_key: str | None = flag(
        None, "where in that file its state dict lies, as model_ema, if several fit", parse=word)

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", ALIASES.get(self.network, self.network))


def backbone(name: str, widths: Widths | None = None) -> Backbone:
    """The row of a network, alias, or a library's or the user's network, narrower if so wished.

    Raises UsageError for any other name, and for a library that is missing.
    """
    name = ALIASES.get(name, name)
    row = NETWORKS.get(name)
    if row is None and ":" not in name:
        raise UsageError(f"network {name!r} is not one of {', '.join((*NETWORKS, *ALIASES))}, "
                         "timm:NAME, torchvision:NAME, module:function")
    row = row or family_row(name)
    return row.narrowed(widths) if widths else row


def runs_code(name: str) -> bool:
    """Whether a network is made by code of the user's own."""
    return ":" in name and name.partition(":")[0] not in FAMILIES


def own_row(own: NetworkConfig) -> Backbone:
    """The row of a run's network, as wide as its weights are if they are a file of ours."""
    path = weights_file(own.network, own.weights)
    known = path is not None and path.is_file()
    _, widths = read_weights(own.network, own.weights, own.weights_key) if known else ({}, {})
    return backbone(own.network, widths)


def build_network(
    name: str, weights: str | None = None, classes: int | None = None, seed: int = 0,
    key: str | None = None, widths: Widths | None = None,
) -> nn.Module:  # fmt: skip
    """A network on the CPU with its weights loaded, in training mode.

    `weights` is a name of the network's, `none`, a path to a file (containers.py: `key` names a
    container in it), or None for the network's default. With `classes` None the source head stays,
    of the size in the file for a path; a number gives a head with that many outputs, a new one
    where the loaded head has another size or is missing. New values depend on `seed` alone and
    leave torch's random state as it was. A file of a compacted network says its `widths`, shapes
    by name; other weights have them from the caller. Raises UsageError for weights that the network
    does not have, VPNsError for weights that are out of reach or do not fit.
    """
    weights = backbone(name).weights if weights is None else weights
    state, known = read_weights(name, weights, key)
    called = f"the weights {weights}"
    return network_of(name, state, called, classes, seed, widths or known)


def source_classes(name: str, weights: str, key: str | None = None) -> int:
    """The outputs of a network with these weights and no head of its own.

    A file of them is read, if it is there.
    """
    path = weights_file(name, weights)
    state = read_weights(name, weights, key)[0] if path and path.is_file() else {}
    return backbone(name).outputs_of(state)


def network_of(
    name: str, state: Mapping[str, Tensor] | None, called: str, classes: int | None = None,
    seed: int = 0, widths: Widths | None = None,
) -> nn.Module:  # fmt: skip
    """The network with these weights, which a message calls `called`; see `build_network`."""
    row = backbone(name, widths)
    loaded = row.outputs_of(state or {})
    bare = state is not None and f"{row.head}.weight" not in state
    new_head = classes is not None and (bare or classes != loaded)
    classes = classes or loaded
    if state is not None:
        shapes = row.skeleton(classes).state_dict()
        if new_head:
            shapes, state = row.without_head(shapes), row.without_head(state)
        if problem := misfit(shapes, state):
            raise VPNsError(f"{called} do not fit {name}{_nearest(name, state)}: {problem}")
    with torch.random.fork_rng(devices=()):  # torch's CPU generator draws all new values
        torch.default_generator.manual_seed(key_seed(seed, "network"))
        network = row.build(classes)
    if state is not None:
        with understood(called):
            load_into(network, state, strict=False)
    return network


def _nearest(name: str, state: Mapping[str, Tensor]) -> str:
    """Which other network these weights fit."""
    for other, row in NETWORKS.items():
        shapes = row.without_head(row.skeleton(row.source_classes).state_dict())
        if other != name and misfit(shapes, row.without_head(state)) is None:
            return f" but {other}"
    return ""


def read_weights(
    name: str, weights: str, key: str | None = None
) -> tuple[dict[str, Tensor] | None, Widths]:
    """The state dict that `weights` stands for, None for `none`, and the widths that it says.

    They are read once for all levels.
    """
    path = weights_file(name, weights)
    stamp = path and path.exists() and (path.stat().st_mtime_ns, path.stat().st_size)
    return _load(name, weights, key, stamp)


@lru_cache(maxsize=1)
def _load(
    name: str, weights: str, key: str | None, stamp: Any
) -> tuple[dict[str, Tensor] | None, Widths]:
    """See `read_weights`; `stamp` is of the file that it is now."""
    path = weights_file(name, weights)
    if path is None:
        return _known_state(backbone(name), weights), {}
    content = read_tensors(path)
    widths = read_meta(path).get("widths", {}) if has_meta(path) else {}
    return own_state(path, content, backbone(name, widths), key), widths


def _known_state(row: Backbone, weights: str) -> dict[str, Tensor] | None:
    """The state dict of a network's own weights, None for `none`."""
    if weights == "none":
        return None
    if row.source.startswith("timm:"):
        return timm_state(row.source.removeprefix("timm:"))
    if row.source.endswith(SUFFIXES):
        return read_state(SHIPPED / row.source)
    own = row.skeleton(row.source_classes).state_dict()  # without auxiliary outputs
    return {key: tensor for key, tensor in hub_state(row.source).items() if key in own}


def own_state(
    path: Path, content: Mapping[str, Any], row: Backbone, key: str | None = None
) -> dict[str, Tensor]:
    """The state dict in a stranger's file under the names of a network; a note says where it was.

    Raises VPNsError when there is none, or a value of it is not finite.
    """
    try:
        expected = row.skeleton(row.source_classes).state_dict()
        state, *_, said = find_state(content, expected, row.head, key)
        require_finite(state)
    except (RuntimeError, ValueError) as error:  # not all types of torch can be looked at
        raise VPNsError(f"{path}: {message_of(error)}") from error
    if said:
        note(f"{path}: {said}")
    return state


def weights_file(name: str, weights: str) -> Path | None:
    """The path in `weights`, perhaps of no file; None for a name of the network's.

    Raises UsageError for a name of another network's, and for a word that is no path.
    """
    names, path = (backbone(name).weights, "none"), Path(weights)
    if weights in names:
        return None
    of_others = weights in {row.weights for row in NETWORKS.values()}
    if of_others or not (path.suffix or path.exists()):
        raise UsageError(f"{name} has no weights {not_one_of(weights, names, ' or a file')}")
    return path
