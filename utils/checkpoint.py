"""Model files: written whole, with a SHA-256 beside each that is checked on load."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import VPNsError
from utils.files import atomic_write, parse_object, side_car, write_streamed
from utils.packed import META, about
from utils.tensors import is_safetensors, read_tensors

META_KEY = "vpns"


def write_side_car(path: Path, digest: str, folder: Path | None = None) -> None:
    """Write the SHA-256 of `path` beside it; `folder` is that of `atomic_write`."""
    atomic_write(side_car(path), f"{digest}  {path.name}\n", folder)


def save_model(
    path: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    folder: Path | None = None,
) -> None:
    """Write a safetensors file with metadata of ours, sorted JSON under one key, and its side-car.

    The side-car comes first, so that a model is never without one. `folder` is that of
    `atomic_write`.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    data = _ordered(save(plain, metadata={"format": "pt", META_KEY: text}))
    write_streamed(
        path,
        lambda file: file.write(data),
        lambda digest: write_side_car(path, digest, folder),
        folder,
    )


def _ordered(data: bytes) -> bytes:
    """A safetensors file with its metadata in the order of their keys, which changes otherwise."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = dict(sorted(header.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": metadata} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a model file of ours.

    Raises VPNsError when the file is missing or damaged, or has no metadata of ours.
    """
    return read_tensors(path), read_meta(path)


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of a model file of ours, without its tensors.

    Raises VPNsError when there are none.
    """
    try:
        with safe_open(path, "pt") as file:
            packed = META in file.keys()  # noqa: SIM118 (it is no dict)
            meta = about(file.get_tensor(META)) if packed else None
            meta = meta or parse_object(file.metadata()[META_KEY])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise VPNsError(f"{path} is not a model file of ours: it has no metadata") from error
    if meta is None:
        raise VPNsError(f"{path} is not a model file of ours: its metadata are no JSON object")
    return meta


def has_meta(path: Path) -> bool:
    """Whether a file is one of safetensors with metadata of ours, good or not."""
    if not is_safetensors(path):
        return False
    with safe_open(path, "pt") as file:
        return META_KEY in (file.metadata() or {}) or META in file.keys()  # noqa: SIM118


def pack_tensor(tensor: Tensor) -> dict[str, Any]:
    """A float32 tensor as JSON values: its shape and base64 of its little-endian bytes."""
    array = tensor.detach().cpu().float().contiguous().numpy()
    return {"shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}


def unpack_tensor(packed: Mapping[str, Any]) -> Tensor:
    """The tensor of `pack_tensor`."""
    data = bytearray(base64.b64decode(packed["data"]))
    return torch.frombuffer(data, dtype=torch.float32).reshape(packed["shape"])
