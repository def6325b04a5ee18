"""How fast clean batches come: resized to 9/8, cut at random, mirrored, as floats in [0, 1].

    python benchmarks/data.py [--sizes 32,64,224] [--files]

Images of 32 px. The authors' way is PIL and torchvision's first transforms in a DataLoader with
two workers, started anew each epoch; ours is the loader of the program, with its cache and
without. A turn is an epoch of each. `--files` reads JPEG files instead of an array in memory.
"""

import argparse
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from operator import methodcaller
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks import timing
from data import DataConfig
from data.images import ArrayImages, FileImages, Part, Splits
from data.load import make_views
from data.transforms import clean_size
from data.views import Look
from utils.device import choose_device
from utils.memory import keep_freed_memory

SIDE = 32
# So many images that the authors' epoch takes some two seconds: (size, images).
EPOCHS = {32: 8192, 64: 6144, 224: 1536}


class PilImages(Dataset):
    """Images as PIL opens them, through a transform, with their labels."""

    def __init__(self, part: Part, transform: transforms.Compose) -> None:
        self._images, self._labels = part.images, part.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if isinstance(self._images, FileImages):
            image = Image.open(self._images.path(row))
        else:
            image = transforms.functional.to_pil_image(self._images.pixels[row])
        return self._transform(image), self._labels[row]


def loader(part: Part, size: int, batch: int) -> DataLoader:
    """The authors': batches from two workers, started anew for each epoch."""
    side = clean_size(size)
    steps = [transforms.Resize((side, side)), transforms.RandomCrop(size),
             transforms.RandomHorizontalFlip(), methodcaller("convert", "RGB"),
             transforms.ToTensor()]  # fmt: skip
    images = PilImages(part, transforms.Compose(steps))
    return DataLoader(images, batch, shuffle=True, num_workers=2)


def random_part(count: int, folder: Path | None) -> Part:
    """Smooth random images of one class in memory, or as JPEG files in `folder`."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.random((count, 3, 4, 4), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1)
    pixels, labels = (255 * smooth).to(torch.uint8), torch.zeros(count, dtype=torch.int64)
    if folder is None:
        return Part(ArrayImages(pixels), labels, ("0",))
    names = np.array([f"{row}.jpg" for row in range(count)], dtype=np.bytes_)
    for row, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{row}.jpg", quality=90)
    return Part(FileImages(folder, names), labels, ("0",))


def compare(part: Part, size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table for one size: images a second, and the ratio to the authors' loader."""
    authors = loader(part, size, args.batch)
    look = Look(size, size, args.batch, choose_device(args.device, None))
    configs = (DataConfig(cache_gb=limit, workers=args.workers) for limit in (None, 0))
    cached, uncached = (make_views(Splits(part, part), config, look).clean for config in configs)
    contenders = {  # each takes every batch to the device and lets it go
        "authors": lambda: deque((x.to(args.device) for x, _ in authors), maxlen=0),
        "cached": lambda: deque(cached.batches(0), maxlen=0),
        "uncached": lambda: deque(uncached.batches(0), maxlen=0),
    }
    seconds = timing.Turns(contenders, args.repeats, device=args.device).run()
    return [
        {"size": size, "loader": name, "images/s": len(part.labels) / median(values),
         "/ authors": None if name == "authors" else timing.ratios(seconds["authors"], values)}
        for name, values in seconds.items()
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser, number = timing.flags(__doc__), timing.positive
    parser.add_argument("--sizes", type=timing.positives, default="32,64,224",
                        help="of batches, pixels")
    parser.add_argument("--batch", type=number, default=64, help="images a batch")
    parser.add_argument("--images", type=number, help="images an epoch (default: by size)")
    parser.add_argument("--repeats", type=number, default=5, help="epochs of each loader")
    parser.add_argument("--files", action="store_true", help="JPEG files, not an array")
    parser.add_argument("--workers", type=number, default=2, help="threads that decode")
    timing.add_device(parser)
    args = parser.parse_args(argv)
    keep_freed_memory()  # as the program does
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            count = args.images or EPOCHS.get(size, 2048)
            part = random_part(count, Path(folder) if args.files else None)
            rows += compare(part, size, args)
    rates = {f"{row['loader']}_{row['size']}": round(row["images/s"]) for row in rows}
    over_authors = {f"{r['loader']}_{r['size']}": r["/ authors"] for r in rows if r["/ authors"]}
    timing.print_result(rows, files=args.files, images_per_second=rates, **over_authors)


if __name__ == "__main__":
    main()
