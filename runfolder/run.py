"""The run folder: what ran, how it went, and its results (DESIGN: contracts)."""

import csv
import io
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runfolder.board import Board
from runfolder.metrics import Metrics
from runfolder.own import guarded, lock, open_own
from runfolder.results import HEAD, PERCENT, PICTURE
from runfolder.surroundings import Surroundings
from utils.errors import Interrupted, VPNsError, message_of, printable
from utils.files import (
    atomic_write,
    below,
    is_amount,
    read_object,
    read_small,
    require_amounts,
    write_json,
)
from utils.ranks import first
from utils.signals import Stop
from utils.tensors import understood
from utils.together import Agreement, from_first

COLUMNS = ("density", "real_density", "kept", "prunable", "before", "after_search", "clean",
           "prompted", "passes", "macs", "packed_bytes")  # fmt: skip
WANDB = "W&B run"
OPEN = ("before", "after_search", "prompted", "macs", "packed_bytes")  # which a row may lack


class Run:
    """One run folder, new or to go on with. As a context manager it keeps run.json up to date."""

    def __init__(self, folder: Path, flags: Mapping[str, Any], stop: Stop) -> None:
        """Raises VPNsError when the folder cannot be made or is held by another process."""
        self.folder, self.flags, self.stop = folder, dict(flags), stop
        self.agreed = Agreement()  # of all processes
        self._started = time.monotonic()
        with guarded(folder):
            if first():
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder / "run.lock")
            self._log = open_own(folder / "log.txt")
        for stray in list(below(folder)) if first() else ():
            if re.fullmatch(r"\..*\.tmp", stray.name):
                stray.unlink(missing_ok=True)
        self._without: set[str] = set()  # what could not be made and nobody needs
        self._wandb: Any = None  # a run of Weights & Biases, where one is asked for
        self.metrics = Metrics(folder, Board(folder, self.flags, self.optional), self._show)
        self.surroundings = Surroundings(folder, self.say)
        earlier = from_first(partial(read_object, folder / "run.json"))
        self._goes_on = bool(earlier)
        self.rows: dict[str, Mapping[str, Any] | None] = {}  # by level folder; None is left out
        self.was_done = earlier.get("state") == "done"
        self._seconds = earlier["seconds"] if is_amount(earlier.get("seconds")) else 0.0

    def __enter__(self) -> "Run":
        """Write down what runs, and keep the threads of a run that goes on."""
        if not read_object(self.folder / "env.json"):
            if self._goes_on:
                self.say("note: env.json is missing or damaged: written anew")
            write_json(self.folder / "config.json", self.flags)
        self.surroundings.begin()
        if self.flags.get("wandb") and first():
            with self.optional(WANDB):
                self._wandb = start_wandb(self.folder, self.flags)
        self.stop.then = "the same command continues from here"
        self.state("running")
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.state("done")
        else:
            state, error = "failed", self.stop.meant(error)
            if isinstance(error, Interrupted):
                self.stop.ignore()
                state = "interrupted"
            with suppress(VPNsError):
                self.state(state, message_of(error))
        self.close()

    def say(self, line: str) -> None:
        """One line to the console, above a progress bar if there is one, and to log.txt."""
        line = printable(line)
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with guarded(self.folder / "log.txt"):
            print(stamp, line, file=self._log, flush=True)

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """What only decorates never stops a run: an error in the block is a note, once a run."""
        try:
            yield
        except Exception as error:
            if self.stop.requested:
                self.stop.now()
            if what not in self._without:
                self.say(f"note: no {what} ({message_of(error)[:200]}); the run goes on, and the "
                         "same command makes what is missing another time")
            self._without.add(what)

    def state(self, state: str, reason: str = "") -> None:
        """Write run.json; state is running, done, interrupted or failed."""
        seconds = self._seconds + time.monotonic() - self._started
        values = {"state": state, "reason": reason, "seconds": round(seconds, 1)}
        write_json(self.folder / "run.json", values)

    def _show(self, numbers: Mapping[str, float]) -> None:
        with self.optional(WANDB):
            if self._wandb is not None:
                self._wandb.log(dict(numbers))

    def lacks(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Whether one of the rows is not in results.csv, or what only decorates is not there."""
        written = ""
        with suppress(OSError, ValueError):
            written = read_small(self.folder / "results.csv").decode()
        listed = set(self._table(rows).splitlines()) <= set(written.splitlines())
        return not (listed and (self.folder / PICTURE).exists() and self.metrics.shown())

    def write_results(self) -> None:
        """Write results.csv, the rows of all levels: the same bytes each time."""
        table = self._table(filter(None, self.rows.values()))
        atomic_write(self.folder / "results.csv", table)

    def _table(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """Rows of levels as they stand in results.csv, densest first, under its head."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow((*HEAD, *COLUMNS))
        names = [self.flags.get(name) for name in ("network", "dataset", "prune_method", "seed")]
        for row in sorted(rows, key=lambda row: -row["density"]):
            table.writerow((*names, *(row[column] for column in COLUMNS)))
        return text.getvalue()

    def close(self) -> None:
        """Let the files and the lock go."""
        self.metrics.board.close()
        with self.optional(WANDB):
            if self._wandb is not None:
                self._wandb.finish()
        self._log.close()
        self._lock.close()


def start_wandb(folder: Path, flags: Mapping[str, Any]) -> Any:
    """The run of Weights & Biases for a run folder, resumed with it. Offline: WANDB_MODE=offline.

    Raises ImportError without the package, and its own errors without an account.
    """
    import wandb

    name = f"{folder.parent.name}-{folder.name}"
    # Its folder holds links, which a run folder does not.
    return wandb.init(project=flags["wandb"], name=name, id=name, dir=folder.parents[1],
                      config=dict(flags), resume="allow")  # fmt: skip


def read_row(path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The results row in the metadata of a model file. VPNsError without one."""
    row = meta.get("result")
    with understood(path):
        there = [n for n in COLUMNS if n not in OPEN or row.get(n) is not None]
        require_amounts(row, *there)
        require_amounts(row, *(n for n in there if n in PERCENT), most=100)
        if not 0 < row["density"] <= 1:
            raise ValueError(f"density {row['density']}")
        return {column: row.get(column) for column in COLUMNS}
