"""Finished runs as records: what ran, how it went, under which label a report shows it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from report.labels import label
from runfolder.results import DENSE, RUN_FILES, Row, find_runs, read_results, sparsity
from utils.errors import VPNsError
from utils.files import is_amount, read_object

NAMES = ("network", "dataset", "prune_method", "seed")  # what the folder of a run is named for


@dataclass(frozen=True)
class Record:
    """One run: its flags, run.json, env.json, and the rows of results.csv by sparsity (%)."""

    folder: Path
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    env: Mapping[str, Any]
    rows: Mapping[float, Row]
    label: str = field(default="")

    @property
    def where(self) -> tuple[str, str]:
        """Network and dataset."""
        return self.config["network"], self.config["dataset"]

    @property
    def method(self) -> str:
        return self.config["prune_method"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def name(self) -> str:
        """The folder without the machine's part of its path."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def asked(self) -> set[float]:
        """Sparsities that the run still owes or has: of an unfinished run also those to come."""
        listed = self.config.get("density_list") or ()
        owed = () if self.run.get("state", "done") == "done" or self.method in DENSE else listed
        return {sparsity(density) for density in owed} - {0} | set(self.rows)


def load_records(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """All runs that `paths` mean (see `find_runs`), labelled, in a fixed order; and notes.

    A run that repeats another (same label and seed) is left out, with a note. Raises VPNsError for
    a path without runs and for a damaged run.
    """
    folders = {run.resolve(): run for path in paths for run in find_runs(path)}
    read = [_read(folder) for folder in folders.values()]
    made = {(record.where, record.method, record.seed) for record in read if record.rows}
    # A false start with other flags that made nothing is no other method.
    records = _labelled(
        [r for r in read if r.rows or (r.where, r.method, r.seed) not in made]
    )
    kept: dict[Any, Record] = {}
    notes = []
    for record in sorted(records, key=lambda r: (*r.where, r.label, r.seed, -len(r.rows), r.name)):
        first = kept.setdefault((*record.where, record.label, record.seed), record)
        if first is not record:
            notes.append(f"{record.name} repeats {first.name} and is left out")
    return list(kept.values()), notes


def _read(folder: Path) -> Record:
    if not any((folder / name).exists() for name in RUN_FILES):
        read_results(folder)
    rows = read_results(folder) if (folder / "results.csv").exists() else []
    config = _flags_in_names(folder) | read_object(folder / "config.json")
    wrong = [name for name, value in config.items() if not _is_flag(name, value)]
    if wrong:
        raise VPNsError(f"{folder / 'config.json'} has no such value of {', '.join(wrong[:3])}")
    run = read_object(folder / "run.json")
    return Record(
        folder,
        config,
        run | {"seconds": run["seconds"] if is_amount(run.get("seconds")) else None},
        read_object(folder / "env.json"),
        {sparsity(row["density"]): row for row in rows},
    )


def _is_flag(name: str, value: Any) -> bool:
    """Whether something read from a config.json can be the value of this flag."""
    plain = str | int | float | None
    if name in NAMES:
        return isinstance(value, int if name == "seed" else str)
    if name == "density_list":
        return isinstance(value, list) and all(map(is_amount, value))
    return all(isinstance(v, plain) for v in (value if isinstance(value, list) else [value]))


def _flags_in_names(folder: Path) -> dict[str, Any]:
    """What NETWORK-DATASET-METHOD/seed7-<hash> says, which config.json says better.

    Raises VPNsError when neither says what ran.
    """
    found = re.fullmatch(r"([^-]+)-([^-]+)-([^-]+)/seed(\d+)(-.*)?", "/".join(folder.parts[-2:]))
    if found:
        return dict(zip(NAMES[:3], found.groups(), strict=False)) | {
            "seed": int(found[4])
        }
    known = read_object(folder / "config.json").keys()
    if known >= set(NAMES):
        return {}
    raise VPNsError(f"{folder} has no config.json that says what ran: name a run folder")


def _labelled(records: Sequence[Record]) -> list[Record]:
    """The records with labels: the method, its deviations, and what else differs within it."""
    alike: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        alike.setdefault((record.where, record.method), []).append(record.config)
    return [
        replace(record, label=label(record.config, alike[(record.where, record.method)]))
        for record in records
    ]
