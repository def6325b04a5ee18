"""The program as a user runs it: in this warm process, in a fork of it, or started anew."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from tqdm import tqdm

import main_vpns
from utils.signals import SIGNALS

ROOT = Path(main_vpns.__file__).parent
SMALL = (
    "--network", "resnet20", "--weights", "none", "--dataset", "digits", "--device", "cpu",
    "--input_size", "8", "--output_size", "8", "--pad_size", "1", "--epochs", "1",
    "--train_images", "120", "--batch_size", "60", "--workers", "0", "--save_every", "1",
)  # fmt: skip

# autograd starts its threads at the first backward pass, for the devices that it then counts, and
# after torch.export it counts one: a fork could not go on. So the first one is here.
torch.ones(1, requires_grad=True).sum().backward()


@dataclass(frozen=True)
class Done:
    """What a command left behind: its exit code (negative: the signal that ended it), its text."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The values of the RESULT line, which must be the last one."""
        assert self.code == 0, self.err
        last = self.out.splitlines()[-1]
        assert last.startswith("RESULT ")
        return json.loads(last.removeprefix("RESULT "))

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.result["run"])

    @property
    def error(self) -> str:
        """The only line on stderr, without `error: `."""
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0].removeprefix("error: ")


def call(*words: object) -> Done:
    """The program in this process; signal handlers are put back."""
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    out, err = io.StringIO(), io.StringIO()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _main(words)
    finally:
        for name, handler in handlers.items():
            signal.signal(getattr(signal, name), handler)
    return Done(code, out.getvalue(), err.getvalue())


def _main(words: Iterable[object]) -> int:
    try:
        return main_vpns.main([str(word) for word in words])
    except SystemExit as end:  # argparse, after --help
        return end.code or 0


def run(save_dir: Path, *words: object) -> Done:
    """A small training run; later words win over those of SMALL."""
    return call(*SMALL, "--save_dir", save_dir, *words)


def forked(save_dir: Path, *words: object, before: Callable[[], None]) -> Done:
    """A small training run in a fork of this process, after `before()` has prepared the fork."""
    return fork(save_dir, *words, before=before)()


def fork(save_dir: Path, *words: object, before: Callable[[], None]) -> Callable[[], Done]:
    """Like `forked`, but returns at once, with a function that waits for the fork to end."""
    child = begin(save_dir, *words, before=before)

    def wait() -> Done:
        status = os.waitpid(child, 0)[1]
        return done(save_dir, os.waitstatus_to_exitcode(status))

    return wait


def begin(save_dir: Path, *words: object, before: Callable[[], None]) -> int:
    """Like `fork`, but returns the number of the process, for a caller who waits for it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, path in enumerate(_texts(save_dir), start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            torch.set_num_threads(1)
            tqdm.set_lock(RLock())  # its own is shared by all forks: one killed with it stops all
            before()
            code = _main((*SMALL, "--save_dir", save_dir, *words))
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def _texts(save_dir: Path) -> list[Path]:
    return [save_dir.with_name(f"{save_dir.name}.{end}") for end in ("out", "err")]


def done(save_dir: Path, code: int) -> Done:
    """What a fork that has ended with `code` left behind."""
    return Done(code, *(path.read_text() for path in _texts(save_dir)))


def start(*words: object, **options: Any) -> subprocess.Popen:
    """The program as a process of its own."""
    command = [sys.executable, str(ROOT / "main_vpns.py"), *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, **(pipes | options))


def wait_for(moment: Callable[[], Any], process: subprocess.Popen) -> None:
    """Wait until `moment()` is true, in a started process that must not end before."""
    for _ in range(6000):
        if moment():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("the moment did not come")


def finish(process: subprocess.Popen) -> Done:
    """Wait for a started process."""
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)


def at_call(owner: Any, name: str, number: int, act: Callable[[], None], after: bool) -> None:
    """From now on `act` at the `number`-th call of a method, before or after the call."""
    original, calls = getattr(owner, name), []

    def replaced(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == number and not after:
            act()
        found = original(*args, **options)
        if len(calls) == number and after:
            act()
        return found

    setattr(owner, name, replaced)


def send(name: str) -> Callable[[], None]:
    """A function that sends this process a signal."""
    return lambda: os.kill(os.getpid(), getattr(signal, name))


def only_run(save_dir: Path) -> Path:
    """The run folder of the only run under a save_dir."""
    (found,) = save_dir.glob("*/*/seed*")
    return found


def files(folder: Path) -> set[str]:
    """All files under a folder, by relative path; TensorBoard's, with time and host, as one."""
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {"events" if name.startswith("events.out.tfevents.") else name for name in paths}


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a run that are the same to the byte whenever it is repeated."""
    kept = [*folder.glob("d*/*.safetensors"), folder / "results.csv"]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(kept)
    }


def plain_pictures(folder: Path) -> None:
    """Stands in for `draw_run`, which takes a second."""
    for path in (folder / "curves.png", *folder.glob("d*/confusion.csv")):
        path.with_suffix(".png").touch()


def metrics(folder: Path) -> list[tuple[float, str, int]]:
    """Density, stage and epoch of each line of metrics.jsonl."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["density"], row["stage"], row["epoch"]) for row in rows]


def meta(path: Path) -> dict[str, Any]:
    """The JSON in the one metadata key of a model file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["vpns"])
