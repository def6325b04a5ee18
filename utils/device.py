"""Which device a run computes on."""

import re

import torch

from utils.config import not_one_of
from utils.errors import UsageError, VPNsError, note
from utils.ranks import on_this_machine, world

DEVICES = ("auto", "cpu", "cuda", "mps")


def device_name(text: str) -> str:
    """A parser for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; ValueError for another name."""
    if text not in DEVICES and not re.fullmatch(r"cuda:\d+", text):
        raise ValueError(not_one_of(text, DEVICES, " or cuda:N"))
    return text


def choose_device(name: str, gpu: int | None) -> torch.device:
    """The device of `--device` and `--gpu`; a GPU becomes the current one of the process.

    torch's seeds, its context and the name in env.json then mean this GPU and no other. `--gpu`
    without a GPU means the CPU, and a note. Under torchrun each process of a machine takes the GPU
    of its number. Raises VPNsError for a device that is not there, UsageError when the two flags
    name different GPUs, or one for several processes.
    """
    name = name if gpu is None else _with_gpu(name, gpu)
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if world() > 1 and name != "cpu":
        if name != "cuda":
            raise UsageError(f"several processes cannot share {name}: leave it out, and each takes "
                             "a GPU of its own, or say --device cpu")
        name = f"cuda:{on_this_machine()[0]}"
    try:
        device = torch.device(name)
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise VPNsError(f"device {name!r} is not available here") from error
    return device


def _with_gpu(name: str, gpu: int) -> str:
    """The device name that `--device` and the number of `--gpu` give together."""
    if name in ("cuda", f"cuda:{gpu}"):
        return f"cuda:{gpu}"
    if name.startswith("cuda:"):
        raise UsageError(f"--device {name} and --gpu {gpu} name different GPUs: give one of them")
    if name != "auto":
        note(f"--gpu {gpu} has no meaning with --device {name}")
        return name
    if torch.cuda.is_available():
        return f"cuda:{gpu}"
    note(f"--gpu {gpu}: no GPU here, running on the CPU")
    return "cpu"
