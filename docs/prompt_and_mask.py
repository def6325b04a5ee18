"""Draw README's picture of a prompt and a mask from a model that the quickstart has made.

    python docs/prompt_and_mask.py RUN/d0.1/model.safetensors docs/prompt_and_mask.png
"""

import sys
from pathlib import Path

import matplotlib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from data import DataConfig, load_data
from program.checkpoints import read_checkpoint

LAYER = "layer2.1.conv1.weight"
DIGIT = 0  # of the test images


def as_sheet(mask: Tensor) -> Tensor:
    """The kernels (O, I, k, k) of a layer side by side, a row an output channel: (O * k, I * k)."""
    outputs, inputs, size, _ = mask.shape
    return mask.transpose(1, 2).reshape(outputs * size, inputs * size)


def draw(model_path: Path, picture_path: Path) -> None:
    """Three panels: a prompted test image, the prompt alone, the mask of one layer."""
    checkpoint = read_checkpoint(model_path, {})
    prompt, mask = checkpoint.model.prompt, checkpoint.masks[LAYER]
    size = checkpoint.flags["input_size"]
    data = load_data(DataConfig(dataset="digits"), size, 100, torch.device("cpu"))
    images, _ = next(iter(data.test.batches()))
    with torch.no_grad():
        prompted = prompt(images[DIGIT : DIGIT + 1])[0]
        pixels = prompt.pixels() * prompt.visible()
        times = float(1 / pixels.abs().max())
    panels = [
        ("a digit in its prompt", prompted.permute(1, 2, 0)),
        (f"the prompt, {times:.1f} times as strong", (pixels * times / 2 + 0.5).permute(1, 2, 0)),
        (f"the mask of one layer, {mask.float().mean():.1%} stay", as_sheet(~mask).float()),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    for axis, (title, picture) in zip(axes, panels, strict=True):
        axis.imshow(picture, cmap="gray", interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
    figure.savefig(picture_path, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
