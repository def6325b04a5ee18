"""How fast clean batches come: resized to 9/8, cut at random, mirrored, as floats in [0, 1].

    python benchmarks/data.py [--sizes 32,64,224] [--files]

Images of 32 px. The authors' way is PIL and torchvision's first transforms in a DataLoader with
two workers, started anew each epoch; ours is the loader of the program, with its cache and
without. A turn is an epoch of each. `--files` reads JPEG files instead of an array in memory.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from benchmarks import pil
from benchmarks.flags import Parser, several, whole
from benchmarks.timing import Ratio, Turns, print_result, print_table, ratios
from data.cache import Resized, room
from data.images import ArrayImages, FileImages, Images
from data.transforms import clean_size
from data.views import Look, View

SIDE = 32
CPU = torch.device("cpu")
# So many images that the authors' epoch takes some two seconds: (size, images).
EPOCHS = {32: 8192, 64: 6144, 224: 1536}


def our_view(images: Images, size: int, batch: int, cache_gb: float | None) -> View:
    """The clean view of the program."""
    side = clean_size(size)
    pixels = Resized(images, (side,), room(cache_gb, CPU), workers=2)
    look = Look(size, side, batch, CPU, shuffled=True, augmented=True)
    return View("clean", pixels, pil.no_labels(images), look)


def random_images(count: int, folder: Path | None) -> Images:
    """Smooth random images in memory, or as JPEG files in `folder`."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.random((count, 3, 4, 4), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1)
    pixels = (255 * smooth).to(torch.uint8)
    if folder is None:
        return ArrayImages(pixels)
    for row, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{row}.jpg", quality=90)
    return FileImages(folder, np.array([f"{row}.jpg" for row in range(count)], dtype=np.bytes_))


def consume(batches: Iterable[object]) -> None:
    """Take every batch, and let it go."""
    for _ in batches:
        pass


def compare(images: Images, size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table for one size: images a second, and the ratio to the authors' loader."""
    labels = pil.no_labels(images)
    authors = pil.loader(images, labels, pil.augmented(size), args.batch)
    cached, uncached = (our_view(images, size, args.batch, limit) for limit in (None, 0))
    contenders = {
        "authors": lambda: consume(authors),
        "cached": lambda: consume(cached.batches(0)),
        "uncached": lambda: consume(uncached.batches(0)),
    }
    seconds = Turns(contenders, args.repeats).run()
    return [
        {
            "size": size,
            "loader": name,
            "images/s": len(images) / sorted(values)[len(values) // 2],
            "/ authors": None if name == "authors" else ratios(seconds["authors"], values),
        }
        for name, values in seconds.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes",
        type=several(whole(1)),
        default="32,64,224",
        help="sides of the batches in pixels",
    )
    parser.add_argument("--batch", type=whole(1), default=64, help="images a batch")
    parser.add_argument("--images", type=whole(0), default=0, help="images an epoch; 0 is by size")
    parser.add_argument("--repeats", type=whole(1), default=5, help="epochs of each loader")
    parser.add_argument("--files", action="store_true", help="JPEG files, not an array")
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            count = args.images or EPOCHS.get(size, 2048)
            images = random_images(count, Path(folder) if args.files else None)
            rows += compare(images, size, args)
    print_table(rows)
    rates = {f"{row['loader']}_{row['size']}": round(row["images/s"]) for row in rows}
    print_result(files=args.files, images_per_second=rates, **found(rows))


def found(rows: Sequence[dict[str, Any]]) -> dict[str, Ratio]:
    """Our rate over the authors', with the cache and without, for each size."""
    return {f"{row['loader']}_{row['size']}": row["/ authors"] for row in rows if row["/ authors"]}


if __name__ == "__main__":
    main()
