"""Channels that belong together, found in the graph of the network that torch.export makes.

A channel is written by one filter, or by several where a residual adds them up, passes norms and
other layers of its own size, and is read by columns of the layers after it. Which filters, norms
and columns that are follows from the operations. A channel that meets an operation not known here
is held: it cannot be removed.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Convolution

from utils.errors import VPNsError, message_of

# Operations that change no number of a channel, or each channel by itself.
KEEPS = frozenset((
    "clone", "contiguous", "alias", "detach", "to", "max_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
    "upsample_bicubic2d", "hardswish",
))  # fmt: skip
READS = {"conv1d", "conv2d", "conv3d", "linear"}
ADAPTS = (Convolution, BatchNorm, nn.Linear, nn.PReLU)  # torch's layers that can be narrower


STOCK = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward}


class Flow(NamedTuple):
    """The channels in a tensor of the graph: which dimension they are, and the slot of each.

    `steady` (C,) marks channels that have the same value everywhere, whatever the images are.
    """

    axis: int
    slots: Tensor
    steady: Tensor


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
        if torch.Tag.pointwise in getattr(n.target, "tags", ()):
            return self.combine(n, given, result)
        if name == "cat":
            return self.join(n, given)
        rule: Callable[..., Flow | None] | None = getattr(self, f"_{name}", None)
        flow = self.flows.get(n.args[0])
        if flow is None:
            return None
        if name in KEEPS:
            # Pooling goes over the last dimensions.
            over = int(name[-2]) if name.endswith("d") and name[-2].isdecimal() else 0
            return flow if flow.axis < result.ndim - over else None
        return rule(n, flow, given, result) if rule and not n.kwargs else None

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
        if flow is None:
            flow = Flow(axis, self.new(inputs, held=True), torch.zeros(inputs, dtype=torch.bool))
        value = _first(x, axis)
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
        slots, steady, zero = None, torch.ones(count, dtype=torch.bool), []
        for node, v in tensors.items():
            place = axis - (result.ndim - v.ndim)
            wide = place >= 0 and v.shape[place] == count
            flow = self.flows.get(node)
            if flow is not None and wide:
                slots, steady = flow.slots if slots is None else slots, steady & flow.steady
                self.same.append((slots, flow.slots))
                zero.append(flow.steady & (_first(v, place) == 0))
            elif flow is not None or (wide and count > 1 and not self.owned(node)):
                return None
            elif node.op != "get_attr" or v.numel() > (count if wide else 1):
                steady = torch.zeros_like(steady)  # it differs from place to place
        if slots is None:
            return None
        for node, v in tensors.items():  # parameters, such as the scale of a layer
            place = axis - (result.ndim - v.ndim)
            if self.owned(node):
                self.use(node)
                if place >= 0 and v.shape[place] == count:
                    self.member(node, place, slots)
        if _name(n).rstrip("_") == "mul":
            for nothing in zero:
                steady = steady | nothing
        return Flow(axis, slots, steady)

    def join(self, n: fx.Node, given: Mapping[fx.Node, Any]) -> Flow | None:
        """Tensors one after the other, along their channels."""
        nodes = n.args[0]
        along = (n.args[1] if len(n.args) > 1 else 0) % given[nodes[0]].ndim
        parts = []
        for node in nodes:
            flow, width = self.flows.get(node), given[node].shape[along]
            if flow is None:
                steady = torch.zeros(width, dtype=torch.bool)
                flow = Flow(along, self.new(width, held=True), steady)
            parts.append(flow)
        if any(flow.axis != along for flow in parts):
            return None
        return Flow(along, *(torch.cat([flow[i] for flow in parts]) for i in (1, 2)))

    def _dropout(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow | None:
        return None if n.args[2] else flow

    _feature_dropout = _dropout

    def _batch_norm(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow | None:
        if flow.axis != 1:
            return None
        for node in n.args[1:5]:
            if given.get(node) is not None and len(given[node]) == len(flow.slots):
                self.use(node)
                if not self.member(node, 0, flow.slots):
                    return None
        return flow

    _prelu = _batch_norm

    def _avg_pool2d(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow | None:
        if flow.axis >= result.ndim - 2:
            return None
        padded = any(np.atleast_1d(n.args[3])) if len(n.args) > 3 else False
        uneven = padded or any(n.args[6:])  # another divisor
        return self._at_border(flow, given[n.args[0]]) if uneven else flow

    def _pad(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow | None:
        """Zeros around each channel, or channels of zeros beside the others."""
        if any(n.args[2:]) and (n.args[2] != "constant" or any(n.args[3:])):
            return None
        x, sides = given[n.args[0]], n.args[1]
        flow, place = self._at_border(flow, x), 2 * (x.ndim - 1 - flow.axis)
        if len(sides) <= place:
            return flow
        return self._widened(flow, *sides[place : place + 2])

    _constant_pad_nd = _pad

    def _widened(self, flow: Flow, before: int, after: int) -> Flow | None:
        if min(before, after) < 0:
            return None
        first, last = self.new(before, held=True), self.new(after, held=True)
        ones = torch.ones(max(before, after), dtype=torch.bool)
        return Flow(flow.axis, torch.cat([first, flow.slots, last]),
                    torch.cat([ones[:before], flow.steady, ones[:after]]))  # fmt: skip

    def _at_border(self, flow: Flow, x: Tensor) -> Flow:
        """A channel beside zeros stays the same everywhere only if it is zero itself."""
        return flow._replace(steady=flow.steady & (_first(x, flow.axis) == 0))

    def _mean(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow | None:
        x = given[n.args[0]]
        dims = [d % x.ndim for d in n.args[1]]
        keeps = len(n.args) > 2 and n.args[2]
        if flow.axis in dims:
            return None
        return flow if keeps else flow._replace(axis=flow.axis - sum(d < flow.axis for d in dims))

    def _slice(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow | None:
        x = given[n.args[0]]
        along = (n.args[1] if len(n.args) > 1 else 0) % x.ndim
        return flow if along != flow.axis or x.shape == result.shape else None

    def _flatten(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow | None:
        x = given[n.args[0]]
        start = (n.args[1] if len(n.args) > 1 else 0) % x.ndim
        if start > flow.axis:
            return flow
        if start < flow.axis or result.ndim != start + 1:
            return None
        places = math.prod(x.shape[start + 1 :])
        return Flow(start, *(part.repeat_interleave(places) for part in flow[1:]))

    def _view(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow | None:
        """`view(B, -1)`: as flattening."""
        x, shape = given[n.args[0]], n.args[1]
        if flow.axis != 1 or len(shape) != 2 or shape[1] != -1 or len(result) != len(x):
            return None
        places = math.prod(x.shape[2:])
        return Flow(1, *(part.repeat_interleave(places) for part in flow[1:]))

    _reshape = _view

    def _permute(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow:
        return flow._replace(axis=[d % result.ndim for d in n.args[1]].index(flow.axis))

    def _transpose(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow:
        a, b = (d % result.ndim for d in n.args[1:3])
        return flow._replace(axis={a: b, b: a}.get(flow.axis, flow.axis))

    def _squeeze(self, n: fx.Node, flow: Flow, given: Any, result: Tensor) -> Flow | None:
        x, dims = given[n.args[0]], n.args[1:]
        gone = [d % x.ndim for d in np.atleast_1d(dims[0])] if dims else range(x.ndim)
        gone = [d for d in gone if x.shape[d] == 1]
        if flow.axis in gone:
            return None
        return flow._replace(axis=flow.axis - sum(d < flow.axis for d in gone))

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
        joined = coo_array((ones, (rows, columns)), shape=(self.count, self.count))
        count, number = connected_components(joined, directed=False)
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


def _first(x: Tensor, axis: int) -> Tensor:
    """The first value of each channel, (C,)."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)[:, 0].clone()
