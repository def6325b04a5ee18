"""Channels that belong together, found in the graph of the network that torch.export makes.

A channel is written by one filter, or by several where a residual adds them up, passes norms and
other layers of its own size, and is read by columns of the layers after it. Which filters, norms
and columns that are follows from the operations. A channel that meets an operation not known here
is held: it cannot be removed.
"""

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Convolution

from models.operations import MOVES, Flow, first_values, moved
from utils.errors import VPNsError, message_of

READS = {"conv1d", "conv2d", "conv3d", "linear"}
ADAPTS = (Convolution, BatchNorm, nn.Linear, nn.PReLU)  # torch's layers that can be narrower
STOCK = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward}


class Reader(NamedTuple):
    """A layer that reads channels: column i of its weight (dimension 1) reads channel slots[i].

    `steady` (C,) marks columns whose input has always the value `value` (C,) and can go into
    `bias`, which the layer may not have yet; with `padded` it ends at the border of the image,
    where zeros are read.
    """

    weight: str
    bias: str
    slots: Tensor
    steady: Tensor
    value: Tensor
    padded: bool


@dataclass(frozen=True)
class Channels:
    """The channels of a network, numbered.

    `members` has the channel of each place along a dimension of a parameter or buffer, (n,), by
    name and dimension; `held` (N,) marks channels that cannot be removed.
    """

    members: Mapping[tuple[str, int], Tensor]
    readers: Sequence[Reader]
    held: Tensor


def channels_of(network: nn.Module, size: int) -> Channels:
    """The channels of a network that is shown images (B, 3, size, size); it is left as it is.

    Raises VPNsError for a network that torch.export does not understand.
    """
    network = copy.deepcopy(network).cpu().eval()
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name for same in names.values() if len(same) > 1 for name in same}
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            program = torch.export.export(network, (images,)).module()
        except Exception as error:  # of many kinds
            raise VPNsError("torch.export does not understand this network, so that its channels "
                            f"cannot be followed ({message_of(error)[:300]})") from error
        trace = _Trace(program, network)
        trace.run(images)
    return trace.channels(tied)


class _Trace(fx.Interpreter):
    """Runs the graph once and follows the channels of each tensor in it."""

    def __init__(self, program: fx.GraphModule, network: nn.Module) -> None:
        super().__init__(program)
        self.network, self.names = network, network.state_dict().keys()
        self.flows: dict[fx.Node, Flow] = {}
        self.members: dict[tuple[str, int], Tensor] = {}
        self.uses: Counter[str] = Counter()  # of parameters, those that were understood
        self.readers: list[Reader] = []
        self.same: list[tuple[Tensor, Tensor]] = []  # slots of one channel
        self.held: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
        self.count = 0

    def run_node(self, n: fx.Node) -> Any:
        """Run an operation and follow the channels that go into it."""
        given = {node: self.env[node] for node in n.all_input_nodes}
        in_place = _name(n).endswith("_")
        if in_place:
            given = {node: v.clone() if isinstance(v, Tensor) else v for node, v in given.items()}
        result = super().run_node(n)
        flow = None
        if n.op == "call_function" and isinstance(result, Tensor):
            with suppress(IndexError, RuntimeError, TypeError, ValueError):  # of arguments
                flow = self.follow(n, given, result)
        if flow is not None:
            self.flows[n] = flow
            if in_place:
                self.flows[n.args[0]] = flow
        elif n.op != "get_attr":
            for node in n.all_input_nodes:
                self.hold(node)
        if in_place:
            self.unsettle(n, known=flow is not None)
        return result

    def follow(self, n: fx.Node, given: Mapping[fx.Node, Any], result: Tensor) -> Flow | None:
        """The channels of what an operation gives, None if it is not known."""
        name = _name(n).rstrip("_")
        if name in READS:
            return self.read(n, given, name == "linear")
        if not any(node in self.flows for node in given):
            return None
        if torch.Tag.pointwise in getattr(n.target, "tags", ()) or name == "hardswish":
            return self.combine(n, given, result)
        if name == "cat":
            return self.join(n, given)
        flow = self.flows.get(n.args[0])
        if flow is not None and name in MOVES:
            x, *args = n.args
            return moved(flow, given[x], lambda it: n.target(it, *args, **n.kwargs), result.shape)
        if flow is None or n.kwargs:
            return None
        if name in ("batch_norm", "prelu"):
            return self.norm(n, flow, given)
        return self.pad(n, flow, given[n.args[0]]) if name in ("pad", "constant_pad_nd") else None

    def unsettle(self, n: fx.Node, known: bool) -> None:
        """Hold what shares its memory with a tensor that was changed in place.

        Only the changed tensor itself is let off, if it is `known` what was done to it.
        """
        changed = n.args[:1] if isinstance(n.args[0], fx.Node) else n.all_input_nodes
        memory = {self.env[node].untyped_storage().data_ptr() for node in changed}
        for node in self.env.keys() & self.flows.keys() - (set(changed) if known else set()):
            if self.env[node].untyped_storage().data_ptr() in memory:
                flow = self.flows[node]
                self.held.append(flow.slots)
                self.flows[node] = flow._replace(steady=torch.zeros_like(flow.steady))

    def new(self, count: int, held: bool = False) -> Tensor:
        """Slots that were not there before, (count,)."""
        slots = torch.arange(self.count, self.count + count)
        self.count += count
        if held:
            self.held.append(slots)
        return slots

    def unknown(self, axis: int, count: int) -> Flow:
        """The channels of a tensor of which nothing is known: they are held."""
        return Flow(axis, self.new(count, held=True), torch.zeros(count, dtype=torch.bool))

    def hold(self, node: Any) -> None:
        """Let nothing remove the channels of a tensor."""
        if node in self.flows:
            self.held.append(self.flows[node].slots)

    def owned(self, node: Any) -> bool:
        """Whether a node is a parameter or buffer of the state, of a layer that can be narrower."""
        if not isinstance(node, fx.Node) or node.op != "get_attr" or node.target not in self.names:
            return False
        owner = self.network.get_submodule(node.target.rpartition(".")[0])
        return isinstance(owner, ADAPTS) or not type(owner).__module__.startswith("torch.nn.")

    def member(self, node: Any, axis: int, slots: Tensor) -> bool:
        """Note the channels along a dimension of a parameter; False for what is none."""
        if not self.owned(node):
            return False
        key = (node.target, axis)
        if key in self.members:
            self.same.append((self.members[key], slots))
        self.members[key] = slots
        return True

    def use(self, *nodes: Any) -> None:
        """Count a use of parameters that was understood."""
        for node in nodes:
            if isinstance(node, fx.Node):
                self.uses[node.target] += 1

    def read(self, n: fx.Node, given: Mapping[fx.Node, Any], linear: bool) -> Flow | None:
        """A convolution or a linear layer: it reads channels and writes others."""
        source, weight, bias, *options = [*n.args, *[None] * 3][: max(3, len(n.args))]
        if n.kwargs or not self.owned(weight) or (bias is not None and not self.owned(bias)):
            return None
        filters, x = given[weight], given[source]
        axis = x.ndim - 1 if linear else x.ndim - filters.ndim + 1
        padding, groups = (list(options) + [1, 0, 1, 1][len(options):])[1::2] if options else (0, 1)
        flow = self.flows.get(source)
        if flow is not None and flow.axis != axis:
            self.hold(source)
            flow = None
        inputs = x.shape[axis]
        flow = flow or self.unknown(axis, inputs)
        value = first_values(x, axis)
        padded = isinstance(padding, str) or any(np.atleast_1d(padding))
        still = flow.steady & ((value == 0) | (not padded))
        if groups == 1:
            slots = self.new(len(filters))
            self.member(weight, 1, flow.slots)
            owner = self.network.get_submodule(weight.target.rpartition(".")[0])
            name = bias.target if bias is not None else weight.target[: -len("weight")] + "bias"
            if bias is None and type(owner).forward not in STOCK:  # it would look at no bias
                flow = flow._replace(steady=flow.steady & (value == 0))
            reader = Reader(weight.target, name, flow.slots, flow.steady, value, padded)
            self.readers.append(reader)
            steady = (filters[:, ~still] == 0).flatten(1).all(1)
        elif groups == inputs == len(filters):  # a filter for each channel
            slots, steady = flow.slots, still | (filters == 0).flatten(1).all(1)
        else:
            return None
        self.member(weight, 0, slots)
        self.member(bias, 0, slots)
        self.use(weight, bias)
        return Flow(axis, slots, steady)

    def combine(self, n: fx.Node, given: Mapping[fx.Node, Any], result: Tensor) -> Flow | None:
        """An operation on each number: sums and products of tensors, activations."""
        tensors = {node: v for node, v in given.items() if isinstance(v, Tensor)}
        axes = {self.flows[node].axis + result.ndim - v.ndim
                for node, v in tensors.items() if node in self.flows}  # fmt: skip
        if len(axes) != 1:
            return None
        axis = axes.pop()
        count = result.shape[axis]
        slots, steady = None, torch.ones(count, dtype=torch.bool)
        zero, along = torch.zeros(count, dtype=torch.bool), {}  # parameters, by their dimension
        for node, v in tensors.items():
            place = axis - (result.ndim - v.ndim)
            wide = place >= 0 and v.shape[place] == count
            flow = self.flows.get(node)
            if flow is not None and wide:
                slots, steady = flow.slots if slots is None else slots, steady & flow.steady
                self.same.append((slots, flow.slots))
                zero |= flow.steady & (first_values(v, place) == 0)
            elif flow is not None or (wide and count > 1 and not self.owned(node)):
                return None
            elif node.op != "get_attr" or v.numel() > (count if wide else 1):
                steady = torch.zeros_like(steady)  # it differs from place to place
            if self.owned(node):
                along[node] = place if wide else None
        if slots is None:
            return None
        for node, place in along.items():  # such as the scale of a layer
            self.use(node)
            if place is not None:
                self.member(node, place, slots)
        if _name(n).rstrip("_") == "mul":
            steady = steady | zero
        return Flow(axis, slots, steady)

    def join(self, n: fx.Node, given: Mapping[fx.Node, Any]) -> Flow | None:
        """Tensors one after the other, along their channels."""
        nodes = n.args[0]
        along = (n.args[1] if len(n.args) > 1 else 0) % given[nodes[0]].ndim
        parts = [self.flows.get(node) or self.unknown(along, given[node].shape[along])
                 for node in nodes]  # fmt: skip
        return joined(along, parts) if all(flow.axis == along for flow in parts) else None

    def norm(self, n: fx.Node, flow: Flow, given: Mapping[fx.Node, Any]) -> Flow | None:
        """BatchNorm and PReLU, which have numbers for each channel, the second dimension."""
        if flow.axis != 1:
            return None
        for node in n.args[1:5]:
            if given.get(node) is not None and len(given[node]) == len(flow.slots):
                self.use(node)
                if not self.member(node, 0, flow.slots):
                    return None
        return flow

    def pad(self, n: fx.Node, flow: Flow, x: Tensor) -> Flow | None:
        """Zeros around each channel, or channels of zeros beside the others."""
        if any(n.args[2:]) and (n.args[2] != "constant" or any(n.args[3:])):
            return None
        sides, place = n.args[1], 2 * (x.ndim - 1 - flow.axis)
        flow = flow.beside_zeros(x)
        if len(sides) <= place:
            return flow
        before, after = sides[place : place + 2]
        if min(before, after) < 0:
            return None
        zeros = [Flow(flow.axis, self.new(count, held=True), torch.ones(count, dtype=torch.bool))
                 for count in (before, after)]  # fmt: skip
        return joined(flow.axis, [zeros[0], flow, zeros[1]])

    def channels(self, tied: Collection[str]) -> Channels:
        """Number the channels: slots that are the same are one channel.

        To parameters that are `tied` to others, or that something else looks at, nothing is added.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        used = Counter(name for node in self.module.graph.nodes if node.op == "get_attr"
                       for name in [node.target] * len(node.users))  # fmt: skip
        fixed = {*tied, *(name for name, count in used.items() if count > self.uses[name])}
        self.held += [slots for (name, _), slots in self.members.items() if name in fixed]
        reads = Counter(reader.weight for reader in self.readers)
        for place, reader in enumerate(self.readers):
            if reads[reader.weight] > 1 or {reader.weight, reader.bias} & fixed:
                self.readers[place] = reader._replace(steady=reader.steady & (reader.value == 0))
        pairs = [torch.cat(side).numpy() for side in zip(*self.same, strict=True)]
        rows, columns = pairs or ([], [])
        ones = np.ones(len(rows), bool)
        together = coo_array((ones, (rows, columns)), shape=(self.count, self.count))
        count, number = connected_components(together, directed=False)
        numbers = torch.from_numpy(number).long()
        held = torch.zeros(count, dtype=torch.bool)
        held[numbers[torch.cat(self.held)]] = True
        members = {key: numbers[slots] for key, slots in self.members.items()}
        readers = [reader._replace(slots=numbers[reader.slots]) for reader in self.readers]
        return Channels(members, readers, held)


def _name(node: fx.Node) -> str:
    """The name of an operation: conv2d, relu_; of others nothing."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.removeprefix("aten::") if schema else ""


def joined(axis: int, parts: Sequence[Flow]) -> Flow:
    """Channels one after the other."""
    slots, steady = (torch.cat(side) for side in zip(*(flow[1:] for flow in parts), strict=True))
    return Flow(axis, slots, steady)
