"""Sparse tensors packed: a bit for each place, and the values that are not zero (docs/format.md).

The bits of all tensors, and the values, lie one after the other in the order of their names.
"""

import json
import math
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.memory import usable_memory

META, BITS, VALUES = "vpns.meta", "vpns.bits", "vpns.values"
MOST_META = 2**26  # bytes of its metadata, inflated


def pack(
    tensors: Mapping[str, Tensor], names: Collection[str], meta: Mapping[str, Any], half: bool
) -> dict[str, Tensor]:
    """The tensors with those of `names` packed, and metadata; values in float16 if `half`."""
    sparse = {name: tensors[name].flatten() for name in sorted(names)}
    shapes = {name: list(tensors[name].shape) for name in sparse}
    flat = torch.cat(list(sparse.values()))
    bits = np.packbits((flat != 0).numpy()).tobytes()
    values = flat[flat != 0]
    about = json.dumps({**meta, "packed": shapes}, sort_keys=True).encode()
    return {name: tensor for name, tensor in tensors.items() if name not in sparse} | {
        META: _deflated(about), BITS: _deflated(bits), VALUES: values.half() if half else values,
    }  # fmt: skip


def packed_bytes(tensors: Mapping[str, Tensor], names: Collection[str]) -> int:
    """Bytes of the tensors, packed without loss, beside metadata."""
    return sum(t.numel() * t.element_size() for t in pack(tensors, names, {}, half=False).values())


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file as they were; those of a file that is not packed as they are.

    Raises ValueError for bits and values that do not belong together, or take too much memory.
    """
    if META not in tensors:
        return dict(tensors)
    shapes = about(tensors[META])["packed"]
    sizes = [math.prod(shape) for shape in shapes.values()]
    if 4 * sum(sizes) > usable_memory() // 2:
        raise ValueError("its weights are larger than half of the memory")
    bits = np.frombuffer(_inflated(tensors[BITS], -(-sum(sizes) // 8)), np.uint8)
    kept = torch.from_numpy(np.unpackbits(bits, count=sum(sizes))).bool()
    flat = torch.zeros(sum(sizes))
    flat[kept] = tensors[VALUES].float()
    parts = zip(shapes.items(), flat.split(sizes), strict=True)
    plain = {n: t for n, t in tensors.items() if n not in (META, BITS, VALUES)}
    return plain | {name: part.view(shape).clone() for (name, shape), part in parts}


def about(packed: Tensor) -> dict[str, Any]:
    """The metadata of a packed file. Raises ValueError when they are none."""
    meta = json.loads(_inflated(packed, MOST_META))
    shapes = meta.get("packed") if isinstance(meta, dict) else None
    if not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
        raise ValueError("its packed metadata have no shapes")
    return meta


def _is_shape(shape: Any) -> bool:
    numbers = isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**31 for n in shape)
    return numbers and len(shape) <= 8 and math.prod(shape) < 2**40


def _deflated(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(zlib.compress(data, 9)), dtype=torch.uint8)


def _inflated(packed: Tensor, most: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed.numpy().tobytes(), most + 1)
    except zlib.error as error:
        raise ValueError(f"its packed data are damaged ({error})") from error
    if len(data) > most or not inflater.eof:
        raise ValueError("its packed data are larger than they say")
    return data
