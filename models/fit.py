"""One tiny forward pass tells before any work whether a network can take the images of a run."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from utils.errors import UsageError

Build = Callable[[], nn.Module]
FAULTS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)  # of a forward


def require_fit(name: str, build: Build, sizes: Iterable[int], batch: int = 2) -> None:
    """Require logits (B, classes) from a batch of images of each size, in pixels, in training mode.

    The message calls the network `name`; torch's random state stays as it was. Raises UsageError
    for the first size at which the network fails or gives anything else.
    """
    with torch.random.fork_rng(devices=()):
        for size in dict.fromkeys(sizes):
            problem = _problem(build, "meta", batch, size) and _problem(build, "cpu", batch, size)
            if problem:
                images = "one image" if batch == 1 else "images"
                raise UsageError(f"{name} cannot train on {images} of {size} px: {problem}")


def require_rest(name: str, build: Build, sizes: Iterable[int], rest: int) -> None:
    """Raises UsageError when the last batch of an epoch has one image and one is too few.

    `rest` counts the images of that batch. BatchNorm has no variance of one value.
    """
    if rest != 1:
        return
    try:
        require_fit(name, build, sizes, batch=1)
    except UsageError as error:
        raise UsageError(
            f"a batch of 1 cannot be trained on ({error}): choose a --batch_size that leaves no "
            "such rest"
        ) from error


def _problem(build: Build, device: str, batch: int, size: int) -> str | None:
    """The reason why the network gives no logits on a device; None if it does.

    The meta device costs no memory and no arithmetic but lacks some operations, so that the CPU
    has the last word on a fault.
    """
    try:
        with torch.device(device):
            network, images = build().train().requires_grad_(), torch.zeros(batch, 3, size, size)
        logits = network(images)
    except FAULTS as error:
        lines = str(error).strip().splitlines()
        return lines[0] if lines else f"its forward raises {type(error).__name__}"
    if not isinstance(logits, torch.Tensor):
        kind = "tuple" if isinstance(logits, tuple) else type(logits).__name__
        return f"its forward returns a {kind}, not logits"
    if logits.ndim != 2 or len(logits) != batch:
        return f"its forward returns a tensor of shape {tuple(logits.shape)}, not (B, classes)"
    if not logits.requires_grad:
        return "its logits have no gradient: its forward runs under torch.no_grad or detaches them"
    return None
