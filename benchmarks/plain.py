"""Networks as torchvision makes them, for the contenders that are not ours."""

import torch
from torch import nn

from models.backbones import backbone, build_network


def plain_network(name: str, seed: int = 0) -> nn.Module:
    """The random weights that our network of this seed has, in torch's own layers.

    Ours may have layers of our own in it (models/stem.py), which a reference must not profit from.
    """
    state = build_network(name, "none", seed=seed).state_dict()
    with torch.device("meta"):  # no time for values that would be thrown away
        network = backbone(name).build(backbone(name).source_classes)
    network.load_state_dict(state, assign=True)
    return network
