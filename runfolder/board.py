"""TensorBoard's file: the curves of metrics.jsonl, the prompts, the density of each layer."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.ranks import first

FILES = "TensorBoard files"
LAYERS, FINAL = "layer_density", "final"  # tags that belong to no epoch
Row = Mapping[str, Any]


class Board:
    """One file at a time. Tags are measure/stage/density, steps are epochs of the stage, from 1.

    TensorBoard reads files in the order of the times in their names, and drops what a later one
    repeats: a clock that was set back would cost it every curve. So each process writes the curves
    anew, with what only the earlier file has, and removes that file. Nothing here stops a run.
    """

    def __init__(
        self, folder: Path, flags: Row, optional: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self._folder, self._flags, self._optional = folder, flags, optional
        self._rows: list[Row] = []
        self._writer: Any = None
        self._gave_up = False  # after an error nothing is written until the next process

    def begin(self, rows: Iterable[Row]) -> None:
        """Go on behind these rows of metrics.jsonl; the file is made with the next number."""
        self.close()
        self._rows = list(rows)

    def add(self, row: Row) -> None:
        """The numbers of an epoch."""
        self._write(lambda writer: _add(writer, scalars(row), row["epoch"]))
        self._rows.append(row)

    def prompt(self, row: Row, picture: Tensor) -> None:
        """The prompt after an epoch, an image (3, H, W) in [0, 1]."""
        tag = f"prompt/{_curve(row)}"
        self._write(lambda writer: writer.add_image(tag, picture.cpu(), row["epoch"]))

    def final(self, row: Row) -> None:
        """The accuracies of a finished level, against its sparsity in tenths of a percent."""
        at = round(1000 * (1 - row["density"]))
        numbers = {f"{FINAL}/{n}": row[n] for n in ("clean", "prompted") if row[n] is not None}
        self._write(lambda writer: _add(writer, numbers, at))

    def layers(self, density: float, densities: Mapping[str, float]) -> None:
        """The share of each weight that a level keeps."""
        numbers = {f"{LAYERS}/{n}/d{density:g}": value for n, value in densities.items()}
        self._write(lambda writer: _add(writer, numbers))

    def made_since(self, metrics: Path) -> bool:
        """Whether there is a file that was written to after this one."""
        files = [path.stat().st_mtime for path in self._files()]
        return bool(files) and (not metrics.exists() or max(files) >= metrics.stat().st_mtime)

    def close(self) -> None:
        """Let the file go."""
        if self._writer is not None:
            with self._optional(FILES):
                self._writer.close()
            self._writer = None

    def _files(self) -> list[Path]:
        return sorted(p for p in self._folder.glob("events.out.tfevents.*") if p.is_file())

    def _write(self, write: Callable[[Any], object]) -> None:
        if not first() or self._gave_up:
            return
        self._gave_up = True
        with self._optional(FILES):
            if self._writer is None:
                self._writer = self._open()
            write(self._writer)
            self._gave_up = False

    def _open(self) -> Any:
        """A new file with all that is known, in place of the earlier ones."""
        from torch.utils.tensorboard import SummaryWriter

        earlier = self._files()
        kept = _only_there(earlier, self._rows)
        writer = SummaryWriter(str(self._folder))
        try:
            for event in kept:
                writer.file_writer.event_writer.add_event(event)
            for row in self._rows:
                _add(writer, scalars(row), row["epoch"])
            _describe(writer, self._flags, self._rows)
            writer.flush()
            for path in earlier:
                path.unlink()
        except BaseException:  # what is half there must not pass for whole
            writer.close()
            for path in set(self._files()) - set(earlier):
                path.unlink()
            raise
        return writer


def _curve(row: Row) -> str:
    return f"{row['stage']}/d{row['density']:g}"


def scalars(row: Row) -> dict[str, float]:
    """The numbers of an epoch by their tags."""
    numbers = {name: value for name, value in row.items() if isinstance(value, float)}
    numbers |= {f"lr{i}": rate for i, rate in enumerate(row["lr"])}
    return {f"{n}/{_curve(row)}": value for n, value in numbers.items() if n != "density"}


def _add(writer: Any, numbers: Mapping[str, float], step: int | None = None) -> None:
    for tag, value in numbers.items():
        writer.add_scalar(tag, value, step)


def _describe(writer: Any, flags: Row, rows: Iterable[Row]) -> None:
    """The flags, for the table of runs; one chart a measure with all densities in it."""
    from torch.utils.tensorboard.summary import hparams

    plain = {n: v for n, v in flags.items() if isinstance(v, bool | int | float | str)}
    for summary in hparams(plain, {f"{FINAL}/clean": 0.0, f"{FINAL}/prompted": 0.0}):
        writer.file_writer.add_summary(summary)
    measures = sorted({tag.partition("/")[0] for row in rows for tag in scalars(row)})
    charts = {name: ["Multiline", [f"{name}/.*"]] for name in measures}
    if charts:
        writer.add_custom_scalars({"all densities": charts})


def _only_there(files: Iterable[Path], rows: Iterable[Row]) -> Iterable[Any]:
    """The events in these files that belong to `rows` and cannot be made from them."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    epochs, kept = {(_curve(row), row["epoch"]) for row in rows}, {}
    for path in files:
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                kind, _, curve = value.tag.partition("/")
                if kind in (LAYERS, FINAL) or kind == "prompt" and (curve, event.step) in epochs:
                    kept[value.tag, event.step] = event
    return kept.values()
