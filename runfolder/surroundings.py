"""Machine, versions and images, on which the last bits of a result depend."""

import os
import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from utils.errors import DataError
from utils.files import read_object, write_json
from utils.ranks import world
from utils.together import from_first

MOST_THREADS = 4  # for each core: what a file may ask for
IDENTICAL = ("python", "torch", "torchvision", "system", "accelerator", "processes")


def environment() -> dict[str, Any]:
    """Versions and hardware that can change the last bits of a result."""
    import torchvision

    return {
        "python": platform.python_version(), "torch": torch.__version__,
        "torchvision": torchvision.__version__, "system": platform.platform(),
        "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": world(),
    }  # fmt: skip


class Surroundings:
    """The env.json of a run, and the demands that go with it."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._data: str | None = None

    def begin(self) -> None:
        """Write env.json, or go on with its threads and say what has changed since."""
        earlier, now = from_first(partial(read_object, self._folder / "env.json")), environment()
        if not earlier:
            write_json(self._folder / "env.json", now)
            return
        self.use_threads(earlier.get("threads"))
        earlier.setdefault("processes", 1)  # before there could be several
        pairs = [(name, earlier.get(name), now[name]) for name in IDENTICAL]
        changes = ", ".join(f"{name} {old} -> {new}" for name, old, new in pairs if old != new)
        if changes:
            self._say(f"note: results are no longer bit-identical, changed: {changes}")

    def use_threads(self, threads: Any) -> None:
        """Compute with as many threads as before, on which the last bits depend."""
        now = torch.get_num_threads()
        most = MOST_THREADS * (os.cpu_count() or 1)
        if type(threads) is int and threads != now and 1 <= threads <= most:
            torch.set_num_threads(threads)
            self._say(f"note: {threads} threads as before instead of {now}")

    def require_data(self, fingerprint: str) -> None:
        """Note the images of the run. Raises DataError when they have changed since it began."""
        env = from_first(partial(read_object, self._folder / "env.json"))
        self._require(fingerprint, env.setdefault("data", from_first(lambda: fingerprint)))
        write_json(self._folder / "env.json", env)
        self._data = fingerprint

    def of_state(self) -> dict[str, Any]:
        """What a training state notes of the data and the machine."""
        return {"data": self._data, "threads": torch.get_num_threads()}

    def require_state(self, state: Mapping[str, Any]) -> None:
        """Compute with the threads of a state. Raises DataError when it saw other images."""
        if self._data is not None:
            self._require(self._data, state.get("data", self._data))
        self.use_threads(state.get("threads"))

    def _require(self, fingerprint: str, before: str | None) -> None:
        if fingerprint != before:
            raise DataError(f"the images are not those that {self._folder} began with: put them "
                            "back, or start afresh with --resume none")
