"""Dead channels removed: those that nothing reads, and those that are always the same.

What a layer reads of a channel that is always the same goes into its bias. Where the layer pads
its images with zeros a bias would be wrong at the border: there one such channel stays and stands
for all of them.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.channels import Channels, Reader, channels_of
from models.widths import widths_of, with_widths
from utils.tensors import load_into

MOST_ROUNDS = 20  # a channel may be dead only once others are gone


@torch.no_grad()
def compacted(
    network: nn.Module, size: int, constants: bool = True, block: int = 1
) -> nn.Module:
    """A copy of a network without its dead channels, in eval mode, with the same outputs.

    `size` is that of its images, in pixels. A network where nothing is dead is copied as it is.
    One whose code looks at the widths of its own tensors may go another way: compare the outputs.
    Without `constants` only what nothing reads, or what is always zero, is removed. Of the dead
    channels some stay where they make the channels of a layer a multiple of `block`.
    """
    network = copy.deepcopy(network).eval()
    for _ in range(MOST_ROUNDS):
        state = network.state_dict()
        smaller = _without(state, channels_of(network, size), constants, block)
        widths = widths_of(state, smaller)
        if not widths:
            break
        load_into(with_widths(network, widths), smaller)
    return network


def _without(
    state: Mapping[str, Tensor], channels: Channels, constants: bool, block: int
) -> dict[str, Tensor]:
    """A state dict without the dead channels."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    dead = _dead(state, channels, constants)
    for reader in channels.readers:
        if reader.padded:
            dead[_stand_in(state[reader.weight], reader, dead)] = False
    _round_up(channels, dead, block)
    members = dict(channels.members)
    for reader in channels.readers:
        if bias := _fold(state, reader, dead):
            members[bias, 0] = members[reader.weight, 0]
    for (name, axis), numbers in members.items():
        kept = (~dead[numbers]).nonzero()[:, 0]
        state[name] = state[name].index_select(axis, kept)
    return state


def _dead(state: Mapping[str, Tensor], channels: Channels, constants: bool) -> Tensor:
    """The channels that can be removed, bool (N,): each reader reads nothing or a steady value."""
    alive = channels.held.clone()
    for reader in channels.readers:
        steady = reader.steady if constants else reader.steady & (reader.value == 0)
        alive[reader.slots[_read(state[reader.weight]) & ~steady]] = True
    return ~alive


def _read(weight: Tensor) -> Tensor:
    """The columns of a weight (out, in, ...) that are not wholly zero, (in,)."""
    return (weight != 0).movedim(1, 0).flatten(1).any(1)


def _constants(weight: Tensor, reader: Reader, dead: Tensor) -> Tensor:
    """The places of columns that read a dead channel, and there a value that is not zero."""
    return (dead[reader.slots] & _read(weight) & (reader.value != 0)).nonzero()[:, 0]


def _stand_in(weight: Tensor, reader: Reader, dead: Tensor) -> Tensor:
    """The channel that is to stand for all constant ones that a layer reads, (1,) or (0,)."""
    places = _constants(weight, reader, dead)
    largest = reader.value[places].abs().argsort(descending=True)[:1]
    return reader.slots[places[largest]]


def _round_up(channels: Channels, dead: Tensor, block: int) -> None:
    """Let the channels of each layer be whole blocks, if it has as many, and at least one."""
    for numbers in channels.members.values():
        gone = numbers[dead[numbers]].unique()
        left = len(numbers) - int(dead[numbers].sum())
        dead[gone[: -left % block if left else block]] = False


def _fold(state: dict[str, Tensor], reader: Reader, dead: Tensor) -> str | None:
    """Put what a layer reads of dead channels into its bias, or into the channel that stands.

    Returns the name of the bias if it was changed.
    """
    weight = state[reader.weight]
    gone = _constants(weight, reader, dead)
    if not len(gone):
        return None
    parts = weight[:, gone].double()
    shape = (1, -1, *[1] * (weight.ndim - 2))
    if reader.padded:
        stay = reader.steady & ~dead[reader.slots] & (reader.value != 0)
        here = reader.value.abs().where(stay, 0.0).argmax()
        shares = (reader.value[gone].double() / reader.value[here].double()).view(shape)
        weight[:, here] += (parts * shares).sum(1).to(weight.dtype)
        return None
    added = (parts * reader.value[gone].double().view(shape)).flatten(1).sum(1)
    bias = state.get(reader.bias, weight.new_zeros(len(weight)))
    state[reader.bias] = (bias.double() + added).to(weight.dtype)
    return reader.bias
