"""Model files: written whole, with a SHA-256 beside each that is checked on load."""

import base64
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import VPNsError
from utils.files import atomic_write, parse_object, sha256
from utils.tensors import read_tensors

META_KEY = "vpns"


def write_with_sum(
    path: Path, data: bytes | memoryview, folder: Path | None = None
) -> str:
    """Write a file and its side-car, side-car first, so that a data file is never without one.

    `folder` is that of `atomic_write`. Returns the SHA-256 in hex.
    """
    digest = sha256(data)
    write_side_car(path, digest, folder)
    atomic_write(path, data, folder)
    return digest


def write_side_car(path: Path, digest: str, folder: Path | None = None) -> None:
    """Write the SHA-256 of `path` beside it."""
    atomic_write(side_car(path), f"{digest}  {path.name}\n", folder)


def side_car(path: Path) -> Path:
    """Where the SHA-256 of `path` is kept."""
    return path.with_name(path.name + ".sha256")


def save_model(
    path: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    folder: Path | None = None,
) -> str:
    """Write a safetensors file with one metadata key that holds sorted JSON.

    One key, because several are written in an order that changes from run to run. `folder` is
    that of `atomic_write`. Returns the SHA-256 of the file.
    """
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    return write_with_sum(path, save(plain, metadata={META_KEY: text}), folder)


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a model file of ours.

    Raises VPNsError when the file is missing or damaged, or has no metadata of ours.
    """
    tensors = read_tensors(path)
    return tensors, read_meta(path)


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of a model file of ours, without reading its tensors.

    Raises VPNsError when there are none.
    """
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = file.read(min(size, path.stat().st_size))
        meta = parse_object(parse_object(header)["__metadata__"][META_KEY])
    except (OSError, KeyError, TypeError, struct.error) as error:
        raise VPNsError(f"{path} is not a model file of ours: it has no metadata") from error
    if meta is None:
        raise VPNsError(f"{path} is not a model file of ours: its metadata are no JSON object")
    return meta


def pack_tensor(tensor: Tensor) -> dict[str, Any]:
    """A float32 tensor as JSON values: its shape and base64 of its little-endian bytes."""
    array = tensor.detach().cpu().float().contiguous().numpy()
    return {"shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}


def unpack_tensor(packed: Mapping[str, Any]) -> Tensor:
    """The tensor of `pack_tensor`."""
    data = bytearray(base64.b64decode(packed["data"]))
    return torch.frombuffer(data, dtype=torch.float32).reshape(packed["shape"])
