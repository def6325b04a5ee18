"""The run folder: what ran, how it went, and its results (DESIGN: contracts)."""

import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from utils.errors import DataError, Interrupted, VPNsError
from utils.files import atomic_write, is_amount, parse_object, read_object, write_problem
from utils.model_file import read_meta
from utils.signals import Stop
from utils.tensors import require_amounts, understood

COLUMNS = (
    "density", "real_density", "kept", "prunable", "before", "after_search", "clean", "prompted",
    "passes",
)  # fmt: skip
MOST_THREADS = 1024  # what no env.json of a real run exceeds
IDENTICAL = ("python", "torch", "torchvision", "system", "accelerator")


def open_run(folder: Path, flags: Mapping[str, Any], stop: Stop) -> "Run":
    """Open a run folder, new or to go on with, and write down what runs.

    A run that goes on keeps its number of threads, which the last bits depend on. Raises
    VPNsError when the folder cannot be written or another process works in it.
    """
    run = Run(folder, flags, stop)
    earlier = read_object(folder / "env.json")
    now = environment()
    if not earlier:
        if run.goes_on:
            run.say("note: env.json is missing or damaged: written anew")
        run.write_json("config.json", flags)
        run.write_json("env.json", now)
        return run
    run.use_threads(earlier.get("threads"))
    changed = [f"{k} {earlier.get(k)} -> {now[k]}" for k in IDENTICAL if earlier.get(k) != now[k]]
    if changed:
        run.say(f"note: results are no longer bit-identical, changed: {', '.join(changed)}")
    return run


class Run:
    """One run folder, open for writing. As a context manager it keeps run.json up to date."""

    def __init__(self, folder: Path, flags: Mapping[str, Any], stop: Stop) -> None:
        """Raises VPNsError when the folder cannot be made or is held by another process."""
        self.folder, self.flags, self.stop = folder, dict(flags), stop
        self.print_freq = flags["print_freq"]
        self._started = time.monotonic()
        self._writer: Any = None
        self._step = 0
        self._data: str | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder / "run.lock")
            self._log = open_log(folder / "log.txt", "a")
        except OSError as error:
            raise VPNsError(write_problem(folder, error)) from error
        for stray in folder.rglob(".*.tmp"):
            stray.unlink(missing_ok=True)
        earlier = read_object(folder / "run.json")
        self.goes_on = bool(earlier)
        self.was_done = earlier.get("state") == "done"
        self._seconds = earlier["seconds"] if is_amount(earlier.get("seconds")) else 0.0

    def __enter__(self) -> "Run":
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
                self.state(state, " ".join(str(error).split()) or kind.__name__)
        self.close()

    def say(self, line: str) -> None:
        """One line to the console, above a progress bar if there is one, and to log.txt."""
        from tqdm import tqdm

        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._guard(lambda: print(stamp, line, file=self._log, flush=True), "log.txt")

    def _guard(self, write: Any, name: str) -> None:
        try:
            write()
        except OSError as error:
            raise VPNsError(write_problem(self.folder / name, error)) from error

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a small JSON file into the folder, whole."""
        atomic_write(self.folder / name, json.dumps(values, indent=2, sort_keys=True) + "\n")

    def use_threads(self, threads: Any) -> None:
        """Compute with as many threads as before, on which the last bits depend."""
        now = torch.get_num_threads()
        if threads != now and threads in range(1, MOST_THREADS + 1):
            torch.set_num_threads(int(threads))
            self.say(f"note: {threads} threads as before instead of {now}")

    def require_data(self, fingerprint: str) -> None:
        """Note the images of the run. Raises DataError when they have changed since it began."""
        known = read_object(self.folder / "env.json")
        self._require(fingerprint, known.setdefault("data", fingerprint))
        self.write_json("env.json", known)
        self._data = fingerprint

    def _require(self, found: str | None, before: str | None) -> None:
        if found != before:
            raise DataError(
                f"the images are not those that {self.folder} began with: put them back, or start "
                "afresh with --resume none"
            )

    def surroundings(self) -> dict[str, Any]:
        """What a training state notes of the data and the machine."""
        return {"data": self._data, "threads": torch.get_num_threads()}

    def require_surroundings(self, state: Mapping[str, Any]) -> None:
        """Compute with the threads of a state. Raises DataError when it saw other images."""
        if self._data is not None:
            self._require(self._data, state.get("data", self._data))
        self.use_threads(state.get("threads"))

    def state(self, state: str, reason: str = "") -> None:
        """Write run.json; state is running, done, interrupted or failed."""
        seconds = self._seconds + time.monotonic() - self._started
        self.write_json(
            "run.json", {"state": state, "reason": reason, "seconds": round(seconds, 1)}
        )

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a line that is none, or cut short by a crash, is left out."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return []
        rows = [parse_object(line) for line in path.read_bytes().split(b"\n")[:-1]]
        return [row for row in rows if row and "density" in row]

    def keep_metrics(self, density: float, rows: int) -> None:
        """Cut the rows of one level back to the first `rows`; other levels stay."""
        kept, found = [], 0
        for row in self.metrics():
            found += row["density"] == density
            if row["density"] != density or found <= rows:
                kept.append(row)
        if found < rows:
            self.say(
                f"note: metrics.jsonl is damaged: {rows - found} of {rows} epochs of density "
                f"{density:g} are missing in the curves"
            )
        atomic_write(self.folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))
        self._close_writer()
        self._step = len(kept)

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl and its numbers to TensorBoard."""
        path = self.folder / "metrics.jsonl"

        def append() -> None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

        self._guard(append, path.name)
        self._step += 1
        tag = f"d{row['density']:g}/{row['stage']}"
        numbers = {k: v for k, v in row.items() if isinstance(v, float) and k != "density"}
        for name, value in numbers.items():
            self.scalar(f"{tag}/{name}", value)

    def scalar(self, tag: str, value: float) -> None:
        """A number for TensorBoard at the present epoch of the run."""
        self._tensorboard().add_scalar(tag, value, self._step)

    def picture(self, tag: str, image: torch.Tensor) -> None:
        """An image (3, H, W) in [0, 1] for TensorBoard."""
        self._tensorboard().add_image(tag, image.cpu(), self._step)

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Steps beyond the last kept row were written by a run that did not finish its epoch.
            self._writer = SummaryWriter(str(self.folder), purge_step=self._step)
        return self._writer

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_results(self) -> None:
        """Write results.csv: a row a finished level, densest first, the same bytes each time."""
        models = self.folder.glob("d*/model.safetensors")
        ordered = sorted(map(read_row, models), key=lambda row: -row["density"])
        lines = [",".join(COLUMNS)]
        lines += [",".join(_cell(row[column]) for column in COLUMNS) for row in ordered]
        atomic_write(self.folder / "results.csv", "\n".join(lines) + "\n")

    def close(self) -> None:
        """Let the files and the lock go."""
        self._close_writer()
        self._log.close()
        self._lock.close()


def read_row(path: Path) -> dict[str, Any]:
    """The results row in a model file. Raises VPNsError when it has none."""
    row = read_meta(path).get("result")
    with understood(path):
        missing = ("before", "after_search", "prompted")
        require_amounts(row, *(n for n in COLUMNS if n not in missing or row[n] is not None))
        if not 0 < row["density"] <= 1:
            raise ValueError(f"density {row['density']}")
    return row


def open_log(path: Path, mode: str) -> IO[str]:
    """A text file to append to. Raises VPNsError for a pipe, which would wait for a reader."""
    if path.is_fifo():
        raise VPNsError(f"{path} is a pipe: remove it")
    return open(path, mode, encoding="utf-8", errors="replace")


def lock(path: Path) -> IO[str]:
    """Hold `path` for this process; the lock goes with the process, however it ends.

    Raises VPNsError that names the holder.
    """
    file = open_log(path, "a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise VPNsError(f"{path.parent} is in use by {holder}: wait for it or stop it") from error
    file.truncate(0)
    print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
    return file


def _cell(value: Any) -> str:
    return "" if value is None else repr(value)


def environment() -> dict[str, Any]:
    """Versions and hardware that can change the last bits of a result."""
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
