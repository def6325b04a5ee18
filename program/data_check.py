"""`--check_data`: what a dataset on the disk holds, and whether it can be trained on."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.cache import room
from data.decoding import BATCH
from data.faults import Faults, readable
from data.images import FileImages, Images, Part, Splits, shortened
from data.layouts import find_layout
from data.load import make_views
from data.opening import locate, open_splits, present, require_images
from data.picture import TOO_LARGE
from data.specs import SPECS
from data.transforms import clean_size
from data.views import Look
from program.plan import check_fit
from program.settings import Config
from utils.errors import DataError, VPNsError, printable

CPU = torch.device("cpu")
BUDGET = 5.0  # seconds of decoding, from which a longer epoch is extrapolated
LISTED = 20  # classes or faults that are printed; RESULT has all
Report = dict[str, Any]


def check_data(config: Config) -> None:
    """Print layout, counts, faults and the time of an epoch; RESULT with all of it comes last.

    Fetches nothing. Raises DataError for data that cannot be trained on.
    """
    data = config.data
    splits = open_splits(data.dataset, data.data, False, data.test_fraction)
    root = locate(data.dataset, data.data, download=False)
    good, faults = readable(splits, data.workers)
    reports = map(split_report, splits, faults)
    epoch = time_epoch(good, config) if len(good.train.labels) else None
    problem = find_problem(good, faults, config)
    report: Report = {
        "dataset": data.dataset,
        "folder": str(root.absolute()) if SPECS[data.dataset].markers else None,
        "found": present(SPECS[data.dataset], root) or parts_of(root),
        "classes": len(splits.train.classes),
        "notes": splits.notes,
        "splits": dict(zip(splits._fields, reports, strict=True)), "unused": unused(splits),
        "epoch": epoch, "trainable": problem is None,
    }  # fmt: skip
    print("\n".join(map(printable, lines(report))))
    print("RESULT " + json.dumps(report))
    if problem:
        raise problem


def parts_of(root: Path) -> list[str]:
    """The folders of a user's own images that are taken for parts, relative to `root`."""
    layout = find_layout(root)
    return [os.path.relpath(part, root) for part in (layout or ())[:2] if part]


def split_report(part: Part, faults: Faults) -> Report:
    """Counts and faults of one split; images that cannot be read are counted as well."""
    counts = part.labels.bincount(minlength=len(part.classes)).tolist()
    by_class = dict(zip(map(printable, part.classes), counts, strict=True))
    return {"images": len(part.labels), "source": source(part.images), "counts": by_class,
            **faults._asdict()}  # fmt: skip


def source(images: Images) -> str:
    """Where the images of a split come from."""
    if not isinstance(images, FileImages):
        channels, height, width = images.pixels.shape[1:]
        return f"arrays of {width} x {height}, {'grey' if channels == 1 else 'RGB'}"
    endings = Counter(os.path.splitext(os.fsdecode(name))[1] for name in images.names.tolist())
    return f"{images.root.absolute()} ({by_ending(dict(endings.most_common()))})"


def by_ending(counts: dict[str, int]) -> str:
    """Numbers of files by the end of their name: `3 .heic, 1 .txt`."""
    return ", ".join(f"{count:,} {ending}" for ending, count in counts.items())


def unused(splits: Splits) -> dict[str, int]:
    """Files beside the images that are none of the dataset's, counted by the end of their name."""
    used, folders = set(), set()
    for part in splits:
        if isinstance(part.images, FileImages):
            root = part.images.root
            used |= {os.path.join(root, os.fsdecode(name)) for name in part.images.names}
            folders |= {os.path.join(root, name) for name in part.classes}
    folders |= set(map(os.path.dirname, used))
    endings = Counter(
        os.path.splitext(entry.name)[1] or entry.name
        for folder in filter(os.path.isdir, folders)
        for entry in os.scandir(folder)
        if entry.path not in used and not entry.name.startswith(".") and entry.is_file()
    )
    return dict(endings.most_common())


def time_epoch(splits: Splits, config: Config) -> Report:
    """Seconds to make every training image once, uncached; for files the bytes of their copies."""
    size, images = config.data.input_size, splits.train.images
    data = replace(config.data, cache_gb=0.0, train_images=0, val_fraction=0.0)
    look = Look(size, size, BATCH, CPU, whole=True)
    batches = make_views(splits, data, look).clean.batches("check")
    start = time.perf_counter()
    measured = first = len(next(batches)[1])
    running = time.perf_counter()  # from here on without the start of the threads
    for _, labels in batches:
        measured += len(labels)
        if time.perf_counter() > running + BUDGET:
            break
    seconds = time.perf_counter() - start
    if measured < len(images):
        seconds = (time.perf_counter() - running) * len(images) / (measured - first)
        batches.close()
    report = {"images": len(images), "size": size, "workers": data.workers, "measured": measured,
              "seconds": round(seconds, 3)}  # fmt: skip
    if isinstance(images, FileImages):
        report["copies"] = len(images) * images.channels * (size**2 + clean_size(size) ** 2)
        report["limit"] = room(config.data.cache_gb, CPU).memory
    return report


def find_problem(good: Splits, faults: tuple[Faults, ...], config: Config) -> VPNsError | None:
    """Why the data cannot be trained on, or None."""
    unreadable = [item for part in faults for item in part.unreadable.items()]
    if unreadable and config.data.bad_images == "stop":
        path, reason = unreadable[0]
        way = "scale them down" if reason.startswith(TOO_LARGE) else "get them again"
        return DataError(f"{len(unreadable):,} images cannot be read, the first {path} ({reason}): "
                         f"{way}, or leave them out with --bad_images skip")
    try:
        require_images(good, f"{config.data.dataset}, without what cannot be read,")
        size = config.data.input_size
        look = Look(size, size, config.data.batch_size, CPU, whole=True)
        check_fit(config, make_views(good, config.data, look))
    except VPNsError as error:
        return error
    return None


def lines(report: Report) -> Iterator[str]:
    """The report for people, line by line: what is long is shortened and says so."""
    markers = ", ".join(report["found"]) or "nothing on the disk"
    yield f"{report['dataset']} in {report['folder'] or 'an installed package'}: found {markers}"
    for name, split in report["splits"].items():
        yield f"{name}: {split['images']:,} images, {split['source']}"
        yield from split_lines(**split)
    yield from report["notes"]
    if report["unused"]:
        yield f"files beside the images that are not used: {by_ending(report['unused'])}"
    if report["epoch"]:
        yield from epoch_lines(report["epoch"])


def split_lines(
    counts: dict[str, int], unreadable: dict[str, str], odd: dict[str, list[str]], **_: object
) -> Iterator[str]:
    """The classes, each if there are few; what cannot be read, file by file; what is converted."""
    few = ": " + ", ".join(f"{name} {count:,}" for name, count in counts.items())
    yield (f"  {len(counts)} classes of {min(counts.values()):,} to {max(counts.values()):,} images"
           f"{few if len(counts) <= LISTED else ''}")  # fmt: skip
    if empty := [name for name, count in counts.items() if not count]:
        yield f"  classes without an image, which keep their place: {shortened(empty)}"
    if unreadable:
        yield f"  {len(unreadable):,} images cannot be read:"
    yield from (f"    {path}: {reason}" for path, reason in [*unreadable.items()][:LISTED])
    if len(unreadable) > LISTED:
        yield f"    and {len(unreadable) - LISTED:,} more, listed in RESULT"
    yield from (f"  {kind}: {shortened(paths)}" for kind, paths in odd.items())


def epoch_lines(epoch: Report) -> Iterator[str]:
    """How long an epoch of reading takes, and how often it happens."""
    measured = f"{epoch['measured']:,}" if epoch["measured"] < epoch["images"] else ""
    yield ("an epoch: {images:,} training images at {size} px with --workers {workers} are read "
           "in {seconds:.2f} s").format(**epoch) + (measured and f", extrapolated from {measured}")
    if "copies" in epoch:
        often = "once" if epoch["copies"] <= epoch["limit"] else "again in every epoch"
        yield (f"resized copies take {epoch['copies'] / 1e9:.2f} of {epoch['limit'] / 1e9:.2f} GB "
               f"(--cache_gb): decoded {often}")  # fmt: skip
