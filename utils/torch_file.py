"""Files of torch.save, read without torch's help: nothing in them is run, and none takes much.

A process without rights looks at the pickle (utils/torch_look.py) and says where the values of
the tensors lie; they are read from there.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.errors import VPNsError

ROOT = str(Path(__file__).parents[1])
LOOK = f"import sys; sys.path.append({ROOT!r}); from utils.torch_look import main; main()"
# Seconds that a look may take, and bytes a second that a slow disk may have.
PATIENCE, SLOWEST = 60, 5 * 2**20
CONTAINERS = {"list": list, "tuple": tuple, "set": set}


def read_torch(path: Path, sums: bool) -> tuple[Any, bool]:
    """The content of a file of torch.save, on the CPU, and whether it has sums of its own.

    With `sums` the CRC-32 of every record of a zip is compared, which torch does not do. Raises
    VPNsError with the path for a file that is damaged, that asks for code, for more than it holds,
    or for more memory or time than plain tensors need; OSError when it cannot be read.
    """
    with open(path, "rb") as file:
        found = _look(path, file, sums)
        data = {key: _values(path, file, *place) for key, place in found["storages"].items()}
    return _built(found["content"], data), found["sums"]


def _look(path: Path, file: BinaryIO, sums: bool) -> dict[str, Any]:
    command = [sys.executable, "-I", "-S", "-B", "-c", LOOK, *["sums"] * sums]
    patience = PATIENCE + path.stat().st_size / SLOWEST
    try:
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=patience,
                              start_new_session=True, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise VPNsError(f"{path} is not read within {patience:.0f} seconds: its disk may hang, "
                        "or the file is hostile") from error
    except OSError as error:
        raise VPNsError(f"{path} needs a process to be looked at, and none can be started "
                        f"({error.strerror}): allow more processes") from error
    if done.returncode or not done.stdout:
        raise VPNsError(f"{path} is refused: looking at it takes more time or memory than the "
                        "tensors of a network need")
    found = json.loads(done.stdout)
    if "fault" in found:
        raise VPNsError(f"{path} {found['fault']}")
    return found


def _values(path: Path, file: BinaryIO, kind: str, count: int, place: int) -> Tensor:
    dtype = getattr(torch, kind)
    data = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    file.seek(place)
    if file.readinto(data.numpy()) != len(data):
        raise VPNsError(f"{path} is damaged (cut off): get it again")
    return data.view(dtype)


def _built(tree: Any, data: dict[str, Tensor]) -> Any:
    """The content that torch_pickle.Tree describes, its tensors over these values."""
    if not isinstance(tree, dict):
        return tree
    ((kind, inside),) = tree.items()
    if kind == "view":
        key, *place = inside
        return data[key].as_strided(*place)
    if kind == "dict":
        return {key: _built(value, data) for key, value in inside}
    return CONTAINERS[kind](_built(item, data) for item in inside)
