"""The curves of a run: a line an epoch in metrics.jsonl, and TensorBoard's files."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from runfolder.own import guarded, open_own
from utils.files import atomic_write, parse_object, read_small
from utils.ranks import first

CURVES = 2**26  # bytes of metrics.jsonl, some 200,000 epochs


class Metrics:
    """Every finished epoch, in the order in which they ended; TensorBoard's step is the row."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "metrics.jsonl"
        self._writer: Any = None
        self._step = 0

    def cut_back(self, density: float, rows: int) -> int:
        """Cut one level back to its first `rows` and drop broken lines; returns how many it has."""
        lines = []
        with suppress(OSError):  # missing, a pipe, or nothing of ours
            lines = read_small(self._path, CURVES).split(b"\n")[:-1]
        earlier, count = [], 0
        for row in map(parse_object, lines):
            if row and "density" in row:
                count += row["density"] == density
                if row["density"] != density or count <= rows:
                    earlier.append(row)
        atomic_write(self._path, "".join(json.dumps(row) + "\n" for row in earlier))
        self.close()
        self._step = len(earlier)
        return min(count, rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl and its numbers to TensorBoard."""
        with guarded(self._path), open_own(self._path) as file:
            file.write(json.dumps(row) + "\n")
        self._step += 1
        tag = f"d{row['density']:g}/{row['stage']}"
        for name, value in row.items():
            if isinstance(value, float) and name != "density":
                self.scalar(f"{tag}/{name}", value)

    def scalar(self, tag: str, value: float) -> None:
        """A number for TensorBoard at the present epoch of the run."""
        if first():
            self._tensorboard().add_scalar(tag, value, self._step)

    def picture(self, tag: str, image: torch.Tensor) -> None:
        """An image (3, H, W) in [0, 1] for TensorBoard."""
        if first():
            self._tensorboard().add_image(tag, image.cpu(), self._step)

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Steps beyond the last row were written by a run that did not finish its epoch.
            self._writer = SummaryWriter(str(self._folder), purge_step=self._step)
        return self._writer

    def close(self) -> None:
        """Let TensorBoard's file go."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
