"""The prompt in an authors' file: its kind is not stored, its region shows it."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import VPNsError


class ForeignPrompt(NamedTuple):
    """`program` is (3, H, H).

    `size` in pixels: the width of the frame (`pad`), the side of the square (`fix`), the side of
    the image in the middle (`expand`); None for `random`, whose size is not stored.
    """

    kind: str
    program: Tensor
    size: int | None


def read_prompt(state: Mapping[str, Tensor]) -> ForeignPrompt:
    """The prompt in a `visual_prompt` entry. Raises VPNsError for another layout."""
    if not {"program"} <= state.keys() <= {"program", "mask"}:
        raise VPNsError(f"the prompt holds {', '.join(map(str, state))}, not a program and a mask")
    program, mask = state["program"], state.get("mask")
    if program.ndim != 3 or program.shape[0] != 3 or program.shape[1] != program.shape[2]:
        raise VPNsError(f"the prompt has the shape {tuple(program.shape)}, not (3, H, H)")
    if not program.isfinite().all():
        raise VPNsError("the prompt is not finite")
    if mask is None:
        return ForeignPrompt("random", program, None)
    region = mask[0] != 0 if mask.ndim == 3 else mask != 0
    if mask.shape != program.shape or not torch.equal(mask, region.expand_as(mask).to(mask)):
        raise VPNsError("the prompt's mask is not one region of 0 and 1 for all three channels")
    kind, size = region_kind(region)
    return ForeignPrompt(kind, program, size)


def region_kind(region: Tensor) -> tuple[str, int]:
    """The kind of prompt that shows on `region` (H, H) bool, and its size.

    A full region is `pad` (`fix` of the whole canvas looks the same), and so is an even ring
    (an `expand` around an image with equal margins looks the same; no flag of theirs gave one).
    """
    side, corner, inner = len(region), int(region[0].sum()), int((~region).any(0).sum())
    width = min(int(region[side // 2].long().cumprod(0).sum()), side // 2)
    before = (side - inner + 1) // 2  # of an image in the middle, as ours is laid
    looks = {
        ("pad", width): ~_square(side, width, side - width),
        ("fix", corner): _square(side, 0, corner),
        ("expand", inner): ~_square(side, before, before + inner),
    }
    for kind, look in looks.items():
        if torch.equal(region, look):
            return kind
    raise VPNsError("the prompt's mask is neither a frame, a corner square nor a ring")


def _square(side: int, start: int, stop: int) -> Tensor:
    """True from `start` to `stop` on both axes, (side, side)."""
    region = torch.zeros(side, side, dtype=torch.bool)
    region[start:stop, start:stop] = True
    return region
