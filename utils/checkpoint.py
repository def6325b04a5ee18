"""Training states and model files: written whole, with a SHA-256 beside each, checked on load."""

import base64
import io
import json
import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import VPNsError
from utils.files import atomic_write, parse_object, sha256
from utils.tensors import read_tensors, understood

META_KEY = "vpns"
KEPT_STATES = 2


def write_with_sum(
    path: Path, data: bytes | memoryview, folder: Path | None = None
) -> str:
    """Write a file and its side-car, side-car first, so that a data file is never without one.

    `folder` is that of `atomic_write`. Returns the SHA-256 in hex.
    """
    digest = sha256(data)
    atomic_write(side_car(path), f"{digest}  {path.name}\n", folder)
    atomic_write(path, data, folder)
    return digest


def side_car(path: Path) -> Path:
    """Where the SHA-256 of `path` is kept."""
    return path.with_name(path.name + ".sha256")


class States:
    """The numbered training states of one level, `state-<n>.pt`; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def numbers(self) -> list[int]:
        """Numbers of the states on disk, newest first."""
        names = [path.stem.removeprefix("state-") for path in self.folder.glob("state-*.pt")]
        ours = (int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,17}", name))
        return sorted(ours, reverse=True)

    def path(self, number: int) -> Path:
        """The file of a state."""
        return self.folder / f"state-{number}.pt"

    def newest_path(self) -> Path | None:
        """The file of the newest state, good or not; None without one."""
        numbers = self.numbers()
        return self.path(numbers[0]) if numbers else None

    def save(self, state: dict[str, Any]) -> None:
        """Write the next state, then drop all but the newest two.

        The bytes are made first and written by us: on a full disk torch.save raises an error
        that does not say so.
        """
        numbers = self.numbers()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_with_sum(self.path(numbers[0] + 1 if numbers else 1), buffer.getbuffer())
        for old in numbers[KEPT_STATES - 1 :]:
            self._remove(old)

    def newest(
        self, check: Callable[[dict[str, Any]], None] = lambda state: None
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest good state or None, and a line for each damaged one that was passed over.

        `check` raises ValueError for what is no state of the level: it counts as damaged.
        A damaged file is renamed, so that it does not take the place of a good one later.
        """
        problems: list[str] = []
        for number in self.numbers():
            path = self.path(number)
            try:
                state = read_tensors(path)
                with understood(path):
                    check(state)
                return state, problems
            except VPNsError as error:
                problems.append(f"{error} (kept as {path.name}.damaged)")
                os.replace(path, path.with_name(path.name + ".damaged"))
                side_car(path).unlink(missing_ok=True)
        return None, problems

    def remove_all(self) -> None:
        """Drop every state and every side-car without one."""
        for number in self.numbers():
            self._remove(number)
        for pattern in ("state-*.pt.sha256", "state-*.pt.damaged"):
            for orphan in self.folder.glob(pattern):
                orphan.unlink(missing_ok=True)

    def _remove(self, number: int) -> None:
        self.path(number).unlink(missing_ok=True)
        side_car(self.path(number)).unlink(missing_ok=True)


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
