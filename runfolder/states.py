"""The training states of one level: numbered, checked on load, the newest two kept."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from utils.checkpoint import write_side_car
from utils.errors import VPNsError
from utils.files import side_car, write_streamed
from utils.ranks import first
from utils.tensors import read_tensors, understood

KEPT_STATES = 2


class States:
    """The numbered training states of one level, `state-<n>.pt`; the newest two are kept.

    Of several processes the first alone writes and removes them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def numbers(self) -> list[int]:
        """Numbers of the states on disk, newest first."""
        names = [path.stem.removeprefix("state-") for path in self.folder.glob("state-*.pt")]
        ours = (int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))
        return sorted(ours, reverse=True)

    def path(self, number: int) -> Path:
        """The file of a state."""
        return self.folder / f"state-{number}.pt"

    def newest_path(self) -> Path | None:
        """The file of the newest state, good or not; None without one."""
        numbers = self.numbers()
        return self.path(numbers[0]) if numbers else None

    def save(self, state: dict[str, Any]) -> None:
        """Write the next state, tensor by tensor, then drop all but the newest two."""
        if not first():
            return
        numbers = self.numbers()
        path = self.path(numbers[0] + 1 if numbers else 1)
        write_streamed(path, partial(torch.save, state), partial(write_side_car, path))
        for old in numbers[KEPT_STATES - 1 :]:
            self._remove(old)

    def newest(
        self, check: Callable[[dict[str, Any]], None] = lambda state: None
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest good state or None, and a line for each damaged one that was passed over.

        `check` raises ValueError for what is no state of the level: it counts as damaged.
        A damaged file is renamed, so that it does not take the place of a good one later.
        """
        problems: list[str] = []
        for number in self.numbers():
            path = self.path(number)
            try:
                state = read_tensors(path)
                with understood(path):
                    check(state)
                return state, problems
            except VPNsError as error:
                problems.append(f"{error} (kept as {path.name}.damaged)")
                os.replace(path, path.with_name(path.name + ".damaged"))
                side_car(path).unlink(missing_ok=True)
        return None, problems

    def set_aside(self) -> None:
        """Give the states of a phase that is over the name of their stage: `search-5.pt`."""
        for number in self.numbers() if first() else ():
            path = self.path(number)
            try:
                stage = str(read_tensors(path).get("stage"))
            except VPNsError:
                continue  # a damaged one keeps its name
            if re.fullmatch(r"[a-z][\w.-]*", stage):
                aside = path.with_name(f"{stage}-{number}.pt")
                if side_car(path).exists():
                    os.replace(side_car(path), side_car(aside))
                os.replace(path, aside)

    def remove_all(self) -> None:
        """Drop every state and every side-car without one."""
        if not first():
            return
        for number in self.numbers():
            self._remove(number)
        for pattern in ("state-*.pt.sha256", "state-*.pt.damaged"):
            for orphan in self.folder.glob(pattern):
                orphan.unlink(missing_ok=True)

    def _remove(self, number: int) -> None:
        self.path(number).unlink(missing_ok=True)
        side_car(self.path(number)).unlink(missing_ok=True)
