"""`--check_data`: what a dataset on the disk holds, and whether it can be trained on."""

import json
import os
import time
from collections import Counter
from dataclasses import replace

import torch

from data.cache import room
from data.decoding import BATCH
from data.faults import Faults, find_faults, without
from data.images import FileImages, Images, Part, Splits, printable
from data.load import make_views
from data.locate import locate, present
from data.opening import open_splits, require_images
from data.specs import SPECS
from data.transforms import clean_size
from data.views import Look
from program.data_report import Report, lines, listed
from program.settings import Config
from utils.errors import DataError

CPU = torch.device("cpu")
BUDGET = 5.0  # seconds of decoding, from which a longer epoch is extrapolated


def check_data(config: Config) -> None:
    """Print layout, counts, faults and the time of an epoch; RESULT with all of it comes last.

    Fetches nothing. Raises DataError when the layout is refused, or when an image cannot be read
    and is not to be left out.
    """
    data, spec = config.data, SPECS[config.data.dataset]
    splits = open_splits(data.dataset, data.data, download=False)
    root = locate(data.dataset, spec, data.data, download=False)
    faults = [find_faults(part.images, data.workers, f"examining {name}")
              for part, name in zip(splits, splits._fields, strict=True)]
    good = Splits(*map(without, splits, faults))
    report: Report = {
        "dataset": data.dataset,
        "folder": str(root.absolute()) if spec.markers else None,
        "found": present(spec, root),
        "classes": len(splits.train.classes),
        "splits": {name: split_report(part, found) for name, part, found in
                   zip(splits._fields, splits, faults, strict=True)},
        "unused": unused(splits),
        "epoch": time_epoch(good, config) if len(good.train.labels) else None,
    }
    problem = find_problem(report, good, config)
    report["trainable"] = problem is None
    print("\n".join(lines(report)))
    print("RESULT " + json.dumps(report))
    if problem:
        raise problem


def split_report(part: Part, faults: Faults) -> Report:
    """Counts and faults of one split; images that cannot be read are counted as well."""
    counts = part.labels.bincount(minlength=len(part.classes)).tolist()
    return {
        "images": len(part.labels),
        "source": source(part.images),
        "counts": dict(zip(map(printable, part.classes), counts, strict=True)),
        "unreadable": {part.images.shown(row): why for row, why in faults.unreadable.items()},
        "odd": {kind: [*map(part.images.shown, rows)] for kind, rows in faults.odd.items()},
    }


def source(images: Images) -> str:
    """Where the images of a split come from."""
    if not isinstance(images, FileImages):
        channels, height, width = images.pixels.shape[1:]
        return f"arrays of {width} x {height}, {'grey' if channels == 1 else 'RGB'}"
    endings = Counter(os.path.splitext(os.fsdecode(name))[1] for name in images.names.tolist())
    return f"{images.root.absolute()} ({listed(dict(endings.most_common()))})"


def unused(splits: Splits) -> dict[str, int]:
    """Files beside the images that are none of the dataset's, counted by the end of their name."""
    used, folders = set(), set()
    for part in splits:
        if isinstance(part.images, FileImages):
            names = [os.path.join(part.images.root, os.fsdecode(n)) for n in part.images.names]
            used.update(names)
            folders.update(map(os.path.dirname, names))
            folders.update(os.path.join(part.images.root, name) for name in part.classes)
    found = Counter(
        os.path.splitext(entry.name)[1] or entry.name
        for folder in filter(os.path.isdir, folders)
        for entry in os.scandir(folder)
        if entry.path not in used and not entry.name.startswith(".") and entry.is_file()
    )
    return dict(found.most_common())


def time_epoch(splits: Splits, config: Config) -> Report:
    """Seconds to make every training image once at the size of the clean view, without a cache."""
    size = config.data.input_size
    data = replace(config.data, cache_gb=0.0, train_images=0, val_fraction=0.0)
    view = make_views(splits, data, Look(size, size, BATCH, CPU)).clean
    batches, start = view.batches("check"), time.perf_counter()
    measured = first = len(next(batches)[1])
    running = time.perf_counter()  # from here on without the start of the workers
    for _, labels in batches:
        measured += len(labels)
        if time.perf_counter() > running + BUDGET:
            break
    seconds = time.perf_counter() - start
    if measured < view.images:
        seconds = (time.perf_counter() - running) * view.images / (measured - first)
        batches.close()
    return {"images": view.images, "size": size, "workers": data.workers, "measured": measured,
            "seconds": round(seconds, 3), **copies(splits.train, config)}  # fmt: skip


def copies(train: Part, config: Config) -> Report:
    """Bytes of the resized copies of files that both views use, and the limit for them."""
    if not isinstance(train.images, FileImages):
        return {}
    size = config.data.input_size
    need = len(train.labels) * train.images.channels * (size**2 + clean_size(size) ** 2)
    return {"copies": need, "limit": room(config.data.cache_gb, CPU).memory}


def find_problem(report: Report, good: Splits, config: Config) -> DataError | None:
    """Why the data cannot be trained on, or None."""
    unreadable = [fault for split in report["splits"].values()
                  for fault in split["unreadable"].items()]
    if unreadable and config.data.bad_images == "stop":
        path, why = unreadable[0]
        return DataError(f"{len(unreadable):,} images cannot be read, the first {path} ({why}): "
                         "get them again, or leave them out with --bad_images skip")
    try:
        require_images(good, f"{config.data.dataset}, without what cannot be read,")
    except DataError as error:
        return error
    return None
