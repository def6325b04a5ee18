"""`pad`: a frame of `pad_size` pixels along the border of the canvas, added as it is.

The frame belongs to the canvas, not to the image: over an image as large as the canvas it covers
its border. 12 * p * (H - p) trainable values; p = 0 is the control without a trainable pixel.
"""

import torch

from prompts.base import VisualPrompt


class PadPrompt(VisualPrompt):
    """Paper, section 3: the default prompt."""

    def __init__(self, output_size: int, pad_size: int) -> None:
        """Raises ValueError unless 0 <= pad_size <= output_size / 2."""
        if not 0 <= 2 * pad_size <= output_size:
            raise ValueError(
                f"pad_size {pad_size} is out of range: 0 to {output_size // 2}, half of the canvas"
            )
        region = torch.ones(output_size, output_size)
        region[pad_size : output_size - pad_size, pad_size : output_size - pad_size] = 0
        super().__init__(output_size, region)
