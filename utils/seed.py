"""Random streams: every draw is a function of a key such as (seed, density, stage, epoch).

Nothing depends on what was drawn before, so workers, caches, restarts and the order of the
densities cannot change a result.
"""

import hashlib
import re

import torch

from utils.config import not_one_of
from utils.errors import VPNsError

DEVICES = ("auto", "cpu", "cuda", "mps")


def key_seed(*key: object) -> int:
    """Map a key of ints, floats and strings to a seed in [0, 2^63), the same in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: object) -> torch.Generator:
    """A fresh CPU generator seeded by the key."""
    return torch.Generator().manual_seed(key_seed(*key))


def reseed(device: torch.device, *key: object) -> None:
    """Restart the streams that layers draw from (dropout), on the CPU and on `device`.

    torch.manual_seed does the same for every device there is, and takes 0.2 ms.
    """
    seed = key_seed(*key)
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def device_name(text: str) -> str:
    """A parser for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; ValueError for another name."""
    if text not in DEVICES and not re.fullmatch(r"cuda:\d+", text):
        raise ValueError(not_one_of(text, DEVICES, " or cuda:N"))
    return text


def pick_device(name: str) -> torch.device:
    """The device that `device_name` lets pass. Raises ValueError for one that is not there."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here") from error
    return device


def choose_device(name: str, gpu: int | None) -> torch.device:
    """The device of `--device`, or of `--gpu`: a GPU that is not there means the CPU, and a note.

    Raises VPNsError for a device that is not there.
    """
    if gpu is not None and name == "auto":
        if torch.cuda.is_available():
            name = f"cuda:{gpu}"
        else:
            print(f"note: --gpu {gpu}: no GPU here, running on the CPU")
    try:
        return pick_device(name)
    except ValueError as error:
        raise VPNsError(str(error)) from error
