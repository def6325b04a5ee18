"""The curves of a run: a line an epoch in metrics.jsonl."""

import errno
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from runfolder.board import Board, scalars
from runfolder.own import guarded, open_own
from utils.errors import VPNsError
from utils.files import atomic_write, is_amount, parse_object, read_small

NONE_OF_OURS = (errno.ENOENT, errno.EINVAL, errno.EFBIG, errno.ELOOP)  # missing, a pipe, too large
CURVES = 2**26  # bytes of metrics.jsonl, some 200,000 epochs


class Metrics:
    """Every finished epoch, in the order in which they ended; `board` and `show` show them."""

    def __init__(
        self, folder: Path, board: Board, show: Callable[[Mapping[str, float]], None]
    ) -> None:
        """`show` gets the numbers of an epoch or a level by their tags."""
        self._path, self.board, self._show = folder / "metrics.jsonl", board, show

    def rows(self) -> list[dict[str, Any]]:
        """The lines of the file that are whole and ours; epochs count from 1."""
        try:
            lines = read_small(self._path, CURVES).split(b"\n")[:-1]
        except OSError as error:
            if error.errno not in NONE_OF_OURS:
                raise VPNsError(f"cannot read {self._path} ({error.strerror}): make it "
                                "readable, or move it away") from error
            lines = []
        rows = [row for row in map(parse_object, lines) if row and _is_ours(row)]
        from_0 = any(row["epoch"] == 0 for row in rows)  # as they once were
        return [row | {"epoch": row["epoch"] + from_0} for row in rows]

    def shown(self) -> bool:
        """Whether there is nothing to show, or it is on the board."""
        return self.board.made_since(self._path) or not self.rows()

    def complete(self, finished: Iterable[Mapping[str, Any]]) -> None:
        """Put everything on the board, with the rows of finished levels, if it lacks something."""
        if not self.shown():
            self.board.begin(self.rows())
            for row in finished:
                self.board.final(row)

    def cut_back(self, density: float, rows: int) -> int:
        """Cut one level back to its first `rows` and drop broken lines; returns how many it has."""
        earlier, count = [], 0
        for row in self.rows():
            count += row["density"] == density
            if row["density"] != density or count <= rows:
                earlier.append(row)
        atomic_write(self._path, "".join(json.dumps(row) + "\n" for row in earlier))
        self.board.begin(earlier)
        return min(count, rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        with guarded(self._path), open_own(self._path) as file:
            file.write(json.dumps(row) + "\n")
        self.board.add(row)
        self._show(scalars(row))

    def finished(self, row: Mapping[str, Any]) -> None:
        """Show the row of a level that is done."""
        self.board.final(row)
        self._show({"final/density": row["density"], "final/clean": row["clean"]})


def _is_ours(row: Mapping[str, Any]) -> bool:
    """Whether a line has what every epoch has."""
    rates = row.get("lr")
    return (is_amount(row.get("density")) and is_amount(row.get("epoch"))
            and isinstance(row.get("stage"), str) and isinstance(rates, list)
            and all(map(is_amount, rates)))  # fmt: skip
