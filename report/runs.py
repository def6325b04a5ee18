"""Finished runs: what ran, how it went, under which label a report shows it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from report.labels import facts, label
from runfolder.results import Row, find_runs, read_results, sparsity
from utils.errors import VPNsError
from utils.files import is_amount, read_object

NAMES = ("network", "dataset", "prune_method", "seed")  # what the folder of a run is named for


@dataclass(frozen=True)
class Run:
    """One run: its flags, run.json, env.json, and the rows of results.csv by sparsity (%)."""

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    env: Mapping[str, Any]
    rows: Mapping[float, Row]
    label: str = ""

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
    def state(self) -> str:
        return self.record.get("state", "done")

    @property
    def asked(self) -> set[float]:
        """Sparsities that the run still owes or has: of an unfinished run also those to come."""
        ends = self.state == "done" or facts(self.method).only_density is not None
        owed = () if ends else self.config.get("density_list") or ()
        return {sparsity(density) for density in owed} - {0} | set(self.rows)


def load_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs that `paths` mean (see `find_runs`), labelled, in a fixed order; and notes.

    A run that repeats another (same label and seed) is left out, with a note. Raises VPNsError for
    a path without runs and for a damaged run.
    """
    folders = {folder.resolve(): folder for path in paths for folder in find_runs(path)}
    runs = [_read(folder) for folder in folders.values()]
    made = {(run.where, run.method, run.seed) for run in runs if run.rows}
    # A false start with other flags that made nothing is no other method.
    runs = [run for run in runs if run.rows or (run.where, run.method, run.seed) not in made]
    alike: dict[Any, list[Mapping[str, Any]]] = {}
    for run in runs:
        alike.setdefault((run.where, run.method), []).append(run.config)
    runs = [replace(r, label=label(r.config, alike[r.where, r.method])) for r in runs]
    firsts: dict[Any, Run] = {}
    notes = []
    for run in sorted(runs, key=lambda r: (*r.where, r.label, r.seed, -len(r.rows), r.name)):
        first = firsts.setdefault((run.where, run.label, run.seed), run)
        if first is not run:
            notes.append(f"{run.name} repeats {first.name} and is left out")
    return list(firsts.values()), notes


def _read(folder: Path) -> Run:
    """Raises VPNsError when something in the folder is damaged, or nothing says what ran."""
    config = read_object(folder / "config.json")
    rows = []
    if (folder / "results.csv").exists() or not (folder / "config.json").exists():
        rows = read_results(folder)
    match = re.fullmatch(r"([^-]+)-([^-]+)-([^-]+)/seed(\d+)(-.*)?", "/".join(folder.parts[-2:]))
    if match:
        config = dict(zip(NAMES, (*match.groups()[:3], int(match[4])), strict=True)) | config
    elif not config.keys() >= set(NAMES):
        raise VPNsError(f"{folder} has no config.json that says what ran: name a run folder")
    wrong = [name for name, value in config.items() if not _is_flag(name, value)]
    if wrong:
        raise VPNsError(f"{folder / 'config.json'} has no such value of {', '.join(wrong[:3])}")
    record = read_object(folder / "run.json")
    if not is_amount(record.get("seconds")):
        record["seconds"] = None
    by_sparsity = {sparsity(row["density"]): row for row in rows}
    return Run(folder, config, record, read_object(folder / "env.json"), by_sparsity)


def _is_flag(name: str, value: Any) -> bool:
    """Whether something read from a config.json can be the value of this flag."""
    if name in NAMES:
        return isinstance(value, int if name == "seed" else str)
    if name == "density_list":
        return isinstance(value, list) and all(map(is_amount, value))
    values = value if isinstance(value, list) else [value]
    return all(isinstance(v, str | int | float | None) for v in values)
