"""What a network is to this project: a row of facts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.pretrained import misfit
from models.widths import Widths, with_widths

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
COLOURS: dict[str, Colours] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "half": ((0.5,) * 3, (0.5,) * 3),
}


def colours(text: str) -> Colours:
    """Mean and standard deviation by a name in COLOURS or as `M,M,M/S,S,S`, else ValueError."""
    if text in COLOURS:
        return COLOURS[text]
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError:
        mean = std = ()
    if not (len(mean) == len(std) == 3 and all(0 <= m <= 1 for m in mean) and min(std) > 0):
        raise ValueError(f"{text!r} is none of {', '.join(COLOURS)} and no M,M,M/S,S,S, means from "
                         "0 to 1 and standard deviations above 0")
    return mean, std


@dataclass(frozen=True)
class Backbone:
    """One network. `build(classes)` makes it with random weights and a head of that size.

    `head` is its last layer, whose outputs are classes; `other_heads` are made anew with it.
    `weights` names its pre-trained weights; their `source` is a torchvision enum entry, a name of
    timm's behind `timm:`, or a file in `models/weights`. Sizes are in pixels: of the images, of
    the canvas, and the width of the prompt's frame.
    """

    build: Callable[[int], nn.Module]
    head: str
    weights: str
    source: str
    source_classes: int = 1000
    input_size: int = 224
    output_size: int = 224
    pad_size: int = 16
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    other_heads: tuple[str, ...] = ()

    @property
    def head_tensors(self) -> frozenset[str]:
        """The names that weights and biases of the last layers have."""
        heads = (self.head, *self.other_heads)
        return frozenset(f"{head}.{kind}" for head in heads for kind in ("weight", "bias"))

    def narrowed(self, widths: Widths) -> "Backbone":
        """The row of the network with these widths; its head has an output a class as before."""

        def build(classes: int) -> nn.Module:
            if not isinstance(widths, dict) or not all(map(_is_list, widths.values())):
                raise ValueError("widths that are no shapes")
            shapes = dict(widths)
            for name in shapes.keys() & self.head_tensors:
                shapes[name] = [classes, *shapes[name][1:]]
            return with_widths(self.build(classes), shapes)

        return replace(self, build=build)

    def skeleton(self, classes: int) -> nn.Module:
        """The network without memory, for its names and shapes.

        One whose making looks at numbers, as some of timm's do, has memory.
        """
        with torch.random.fork_rng(devices=()):
            try:
                with torch.device("meta"):
                    return self.build(classes)
            except (NotImplementedError, RuntimeError):
                return self.build(classes)

    def outputs_of(self, state: Mapping[str, Tensor]) -> int:
        """The outputs of the last layer in a state dict; the source's where there is none."""
        head = state.get(f"{self.head}.weight")
        return (head is not None and head.ndim > 1 and len(head)) or self.source_classes

    def without_head(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict without the last layers, which are made anew."""
        heads = (self.head, *self.other_heads)
        return {key: t for key, t in state.items() if key.rpartition(".")[0] not in heads}

    def skeleton_of(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The skeleton that has these tensors, whatever its number of outputs.

        Raises ValueError when none has: of a head of any size nothing is built before. For within
        `understood`.
        """
        network = self.skeleton(len(state[f"{self.head}.weight"]))
        if problem := misfit(network.state_dict(), state):
            raise ValueError(problem)
        return network


def _is_list(shape: object) -> bool:
    return isinstance(shape, list) and bool(shape)
