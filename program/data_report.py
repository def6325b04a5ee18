"""The report of `--check_data` for people: what is long is shortened and says so."""

from collections.abc import Iterator
from typing import Any

from data.load import shortened

LISTED = 20  # classes or faults that are printed; RESULT has all
Report = dict[str, Any]


def lines(report: Report) -> Iterator[str]:
    """The report, line by line."""
    found = ", ".join(report["found"]) or "nothing on the disk"
    yield f"{report['dataset']} in {report['folder'] or 'an installed package'}: found {found}"
    for name, split in report["splits"].items():
        yield f"{name}: {split['images']:,} images, {split['source']}"
        yield from class_lines(split["counts"])
        yield from fault_lines(split)
    if report["unused"]:
        yield f"files beside the images that are not used: {listed(report['unused'])}"
    if report["epoch"]:
        yield from epoch_lines(report["epoch"])


def listed(endings: dict[str, int]) -> str:
    """Numbers of files by the end of their name: `3 .heic, 1 .txt`."""
    return ", ".join(f"{count:,} {ending}" for ending, count in endings.items())


def class_lines(counts: dict[str, int]) -> Iterator[str]:
    """How many images the classes have, each class if there are few."""
    values = sorted(counts.values())
    few = ": " + ", ".join(f"{name} {count:,}" for name, count in counts.items())
    yield (f"  {len(counts)} classes of {values[0]:,} to {values[-1]:,} images"
           f"{few if len(counts) <= LISTED else ''}")  # fmt: skip
    empty = [name for name, count in counts.items() if not count]
    if empty:
        yield f"  classes without an image, which keep their place: {shortened(empty)}"


def fault_lines(split: Report) -> Iterator[str]:
    """What cannot be read, file by file, and what is converted, kind by kind."""
    unreadable = split["unreadable"]
    if unreadable:
        yield f"  {len(unreadable):,} images cannot be read:"
    yield from (f"    {path}: {why}" for path, why in [*unreadable.items()][:LISTED])
    if len(unreadable) > LISTED:
        yield f"    and {len(unreadable) - LISTED:,} more, listed in RESULT"
    for kind, paths in split["odd"].items():
        yield f"  {kind}: {shortened(paths)}"


def epoch_lines(epoch: Report) -> Iterator[str]:
    """How long an epoch of reading takes, and how often it happens."""
    images, measured = epoch["images"], epoch["measured"]
    extrapolated = f", extrapolated from {measured:,}" if measured < images else ""
    yield (f"an epoch: {images:,} training images at {epoch['size']} px with --workers "
           f"{epoch['workers']} are read in {epoch['seconds']:.2f} s{extrapolated}")  # fmt: skip
    if "copies" in epoch:
        need, limit = (epoch[name] / 1e9 for name in ("copies", "limit"))
        often = "once" if need <= limit else "again in every epoch"
        yield f"resized copies take {need:.2f} of {limit:.2f} GB (--cache_gb): decoded {often}"
