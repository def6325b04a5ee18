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
from program.evaluation import read_checkpoint

LAYER = "layer2.1.conv1.weight"


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
        prompted = prompt(images[3:4])[0].permute(1, 2, 0)
    panels = [
        ("an image in its prompt", prompted, {}),
        ("the prompt alone (grey adds nothing)", prompt.picture().permute(1, 2, 0), {}),
        (f"mask of {LAYER}: black stays, {mask.float().mean():.1%}", as_sheet(~mask).float(),
         {"cmap": "gray"}),
    ]  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained")
    for axis, (title, picture, options) in zip(axes, panels, strict=True):
        axis.imshow(picture, interpolation="nearest", **options)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.savefig(picture_path, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
