"""The kinds of prompt: where each shows on the canvas (paper, section 3 and its ablation).

Each raises ValueError for a size that does not fit the canvas, a square of `output_size` pixels.
"""

import torch
from torch import Tensor

from prompts.base import SigmoidPrompt, VisualPrompt, margins


class PadPrompt(VisualPrompt):
    """A frame of `pad_size` pixels along the border of the canvas, added as it is: the default.

    It covers the border of an image as large as the canvas. 12 * p * (H - p) trainable values;
    p = 0 is the control without a trainable pixel.
    """

    def __init__(self, output_size: int, pad_size: int) -> None:
        if not 0 <= 2 * pad_size <= output_size:
            raise ValueError(
                f"pad_size {pad_size} is out of range: 0 to {output_size // 2}, half of the canvas"
            )
        super().__init__(1 - square(output_size, pad_size, output_size - 2 * pad_size))


class FixPrompt(SigmoidPrompt):
    """A square of `mask_size` pixels in the top left corner: 3 * mask_size^2 trainable values."""

    def __init__(self, output_size: int, mask_size: int) -> None:
        if not 1 <= mask_size <= output_size:
            raise ValueError(
                f"mask_size {mask_size} is out of range: 1 to {output_size}, the size of the canvas"
            )
        super().__init__(square(output_size, 0, mask_size))
        self.mask_size = mask_size


class ExpandPrompt(SigmoidPrompt):
    """The ring that the image leaves free: 3 * (H^2 - input_size^2) trainable values (ILM-VP)."""

    def __init__(self, output_size: int, input_size: int) -> None:
        if not 1 <= input_size < output_size:
            raise ValueError(
                f"input_size {input_size} leaves no ring for the expand prompt: "
                f"it must be from 1 to {output_size - 1}"
            )
        before, _ = margins(input_size, output_size)
        super().__init__(1 - square(output_size, before, input_size))


class RandomPrompt(FixPrompt):
    """Such a square, at a new place for every batch.

    3 * mask_size^2 of the 3 * H^2 values move in a step. The last offset is drawn too and a square
    as large as the canvas works; the authors' code leaves the one out and fails at the other.
    """

    def __init__(self, output_size: int, mask_size: int) -> None:
        super().__init__(output_size, mask_size)
        self._shown = self.region  # no buffer: states need not hold it
        self.region = torch.ones_like(self._shown)

    def move(self) -> None:
        """To one place for a whole batch, from torch's global CPU stream."""
        top, left = torch.randint(0, self.output_size - self.mask_size + 1, (2,)).tolist()
        if self._shown.device != self.region.device:
            self._shown = torch.empty_like(self.region)
        self._shown.zero_()[top : top + self.mask_size, left : left + self.mask_size] = 1

    def visible(self) -> Tensor:
        return self._shown

    def finished(self) -> Tensor:
        """In the top left corner, as any other place would be as good."""
        corner = square(self.output_size, 0, self.mask_size).to(self.region)
        return (self.pixels() * corner).detach()


def square(output_size: int, start: int, size: int) -> Tensor:
    """1 in a square of `size` pixels from `start` on both axes, else 0, (H, H)."""
    region = torch.zeros(output_size, output_size)
    region[start : start + size, start : start + size] = 1
    return region
