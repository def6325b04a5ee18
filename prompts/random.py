"""`random`: a square of `mask_size` pixels at a place drawn anew for every batch, sigmoid.

The last offset is drawn too and a square as large as the canvas works; the authors' code leaves
the one out and fails at the other.
"""

import torch
from torch import Tensor

from prompts.base import SigmoidPrompt
from prompts.fix import check_mask_size


class RandomPrompt(SigmoidPrompt):
    """Paper, prompt ablation: 3 * mask_size^2 of the 3 * H^2 values move in a step."""

    def __init__(self, output_size: int, mask_size: int) -> None:
        """Raises ValueError unless 1 <= mask_size <= output_size."""
        check_mask_size(mask_size, output_size)
        super().__init__(output_size, torch.ones(output_size, output_size))
        self.mask_size = mask_size

    def visible(self) -> Tensor:
        """One place for the whole batch, from torch's global CPU stream, (H, H)."""
        last = self.output_size - self.mask_size
        top, left = torch.randint(0, last + 1, (2,)).tolist()
        shown = torch.zeros_like(self.region)
        shown[top : top + self.mask_size, left : left + self.mask_size] = 1
        return shown

    @torch.no_grad()
    def picture(self) -> Tensor:
        """The whole program, since every place shows in some batch, (3, H, H) in [0, 1]."""
        return self.pixels() / 2 + 0.5
