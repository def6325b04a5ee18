"""`fix`: a square of `mask_size` pixels in the top left corner, through a sigmoid."""

import torch

from prompts.base import SigmoidPrompt


def check_mask_size(mask_size: int, output_size: int) -> None:
    """Raises ValueError unless 1 <= mask_size <= output_size."""
    if not 1 <= mask_size <= output_size:
        raise ValueError(
            f"mask_size {mask_size} is out of range: 1 to {output_size}, the size of the canvas"
        )


class FixPrompt(SigmoidPrompt):
    """Paper, prompt ablation: 3 * mask_size^2 trainable values."""

    def __init__(self, output_size: int, mask_size: int) -> None:
        """Raises ValueError unless 1 <= mask_size <= output_size."""
        check_mask_size(mask_size, output_size)
        region = torch.zeros(output_size, output_size)
        region[:mask_size, :mask_size] = 1
        super().__init__(output_size, region)
