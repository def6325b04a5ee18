"""`--predict`: what a finished network sees in pictures."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from data.layouts import is_image
from data.picture import decode
from models.deployed import load_pruned
from program.settings import Config
from report.text import no_formula
from utils.device import choose_device
from utils.errors import DataError, UsageError, printable
from utils.files import atomic_write

Row = dict[str, Any]


@torch.no_grad()
def predict(config: Config, typed: set[str]) -> dict[str, Any]:
    """Print name and probability for each picture, or write them to `--to` as CSV.

    A folder stands for the pictures in it, however deep. Raises UsageError without a model,
    DataError for a picture that cannot be read.
    """
    run = config.run
    if run.model is None:
        raise UsageError("--predict needs a model: name its model.safetensors with --model")
    device = choose_device(run.device, run.gpu)
    model, names = load_pruned(run.model, run.clean)
    model.to(device)
    rows = []
    for path in _pictures(run.predict):
        chances = model(decode(path)[None].to(device))[0]
        best = int(chances.argmax())
        rows.append({"picture": str(path), "class": names[best],
                     "probability": round(float(chances[best]), 4)})  # fmt: skip
        if run.to is None:
            line = "{probability:.4f}  {class}  {picture}".format_map(rows[-1])
            print(printable(line))
    if run.to is not None:
        _write(Path(run.to), rows)
    return {"model": run.model, "pictures": len(rows), "to": run.to}


def _pictures(given: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, given):
        if not path.is_dir():
            yield path
        elif found := sorted(p for p in path.rglob("*") if is_image(p.name)):
            yield from found
        else:
            raise DataError(f"{path} holds no pictures")


def _write(path: Path, rows: Sequence[Row]) -> None:
    """The rows as CSV, no cell of which a spreadsheet takes for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(("picture", "class", "probability"))
    writer.writerows(map(no_formula, map(str, row.values())) for row in rows)
    atomic_write(path, text.getvalue())
