"""`expand`: the ring of the canvas that the image leaves free, through a sigmoid."""

import torch

from prompts.base import SigmoidPrompt, margins


class ExpandPrompt(SigmoidPrompt):
    """The origin of the method (ILM-VP): 3 * (H^2 - input_size^2) trainable values."""

    def __init__(self, output_size: int, input_size: int) -> None:
        """Raises ValueError unless 1 <= input_size < output_size: the ring would be empty."""
        if not 1 <= input_size < output_size:
            raise ValueError(
                f"input_size {input_size} leaves no ring for the expand prompt: "
                f"it must be from 1 to {output_size - 1}"
            )
        before, _ = margins(input_size, output_size)
        region = torch.ones(output_size, output_size)
        region[before : before + input_size, before : before + input_size] = 0
        super().__init__(output_size, region)
