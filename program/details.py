"""metrics.json and confusion.csv beside a model: what one accuracy hides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from data import Data
from models import PromptedClassifier
from pruning.breakdown import Breakdown
from pruning.measure import Counts, evaluate
from runfolder.results import CONFUSIONS
from utils.files import atomic_write, csv_text, write_json

METRICS = "metrics.json"


def measure(
    model: PromptedClassifier, data: Data, prompted: bool, folder: Path | None
) -> tuple[Counts, Counts | None, dict[str, Any]]:
    """Counts of a model on the test images, clean and, if wanted, prompted; and what they hide.

    With a `folder` the latter is written there, with the confusions on clean images.
    """
    counts, found = {}, {}
    for view in ("clean", *["prompted"] * prompted):
        seen = Breakdown(model.classes)
        counts[view] = evaluate(model, data.test, prompted=view == "prompted", also=seen.add)
        found[view] = seen.of_all().numbers(data.classes)
        if view == "clean" and folder:
            atomic_write(folder / CONFUSIONS, table(data.classes, seen.pairs))
    if folder:
        write_json(folder / METRICS, found)
    return counts["clean"], counts.get("prompted"), found


def table(names: Sequence[str], pairs: Tensor) -> str:
    """The images of each class (rows) by the class that the network takes them for (columns)."""
    rows = ([name, *row] for name, row in zip(names, pairs.tolist(), strict=True))
    return csv_text([["class", *names], *rows])
