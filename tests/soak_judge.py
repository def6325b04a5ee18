"""What a run left behind, compared with an undisturbed one; growth with the number of resumes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cli

from runfolder.run import lock
from utils.errors import VPNsError

Row = Mapping[str, Any]
GROUPS = {"0": (0, 0), "1-2": (1, 2), "3-5": (3, 5), "6+": (6, 10**9)}  # numbers of resumes
MOST_GROWTH = 1.05  # of a median, to the undisturbed runs


@dataclass(frozen=True)
class Left:
    """A save_dir when all is over: SHA-256 of its results, its record, and all of its files."""

    digests: Mapping[str, str]
    record: tuple[str, ...]
    files: frozenset[str]


def left_in(save_dir: Path) -> Left:
    """What is in a save_dir with one run. Seconds are left out of the record of the epochs."""
    results = [*save_dir.rglob("*.safetensors"), *save_dir.rglob("results.csv")]
    rows = (json.loads(line) for p in save_dir.rglob("metrics.jsonl") for line in p.open())
    return Left(
        {str(p.relative_to(save_dir)): digest(p) for p in results},
        tuple(json.dumps({k: v for k, v in row.items() if k != "seconds"}) for row in rows),
        frozenset(map(plain_name, cli.files(save_dir))),
    )


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain_name(path: str) -> str:
    """A file's path; TensorBoard's files, with time and host and one more a resume, as one."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/events" if name.startswith("events.out.tfevents.") else path


def differences(undisturbed: Left, left: Left) -> list[str]:
    """The results that are missing, or not the same to the byte."""
    names = sorted(undisturbed.digests.keys() | left.digests.keys())
    wrong = [n for n in names if undisturbed.digests.get(n) != left.digests.get(n)]
    wrong += [f"{name} is missing" for name in sorted(undisturbed.files - left.files)]
    return wrong + ["metrics.jsonl"] * (undisturbed.record != left.record)


def leftovers(undisturbed: Left, left: Left, save_dir: Path) -> list[str]:
    """Files that an undisturbed run does not leave, a lock still held, a run not done."""
    found = sorted(left.files - undisturbed.files)
    for state in save_dir.rglob("run.json"):
        found += [f"{state.name} is not done"] * (json.loads(state.read_text())["state"] != "done")
    for path in save_dir.rglob("run.lock"):
        try:
            lock(path).close()
        except VPNsError:
            found.append(f"{path.name} is held")
    return found


def values_by_resumes(runs: Iterable[Row], name: str) -> dict[str, list[float]]:
    """A value of the runs, for each group of numbers of resumes that has some."""
    groups: dict[str, list[float]] = {group: [] for group in GROUPS}
    for run in runs:
        (group,) = (g for g, (low, high) in GROUPS.items() if low <= run["resumes"] <= high)
        groups[group].append(run[name])
    return {group: values for group, values in groups.items() if values}


def by_resumes(runs: Iterable[Row], name: str) -> dict[str, float]:
    """The medians of a value of the runs, for each group of numbers of resumes."""
    groups = values_by_resumes(runs, name).items()
    return {group: round(median(values), 3) for group, values in groups}


def table(runs: Sequence[Row], names: Sequence[str]) -> str:
    """Medians of values of the runs, a line for each group of numbers of resumes."""
    lines = [" ".join(f"{title:>12}" for title in ("resumes", "runs", *names))]
    for group, counted in values_by_resumes(runs, "resumes").items():
        medians = [by_resumes(runs, name)[group] for name in names]
        cells = (group, len(counted), *medians)
        lines.append(" ".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def growth(runs: Iterable[Row], name: str) -> list[str]:
    """A line for each group whose median of `name`, a ratio, is too far above 1."""
    return [
        f"{name} is {value:.3f} times as much after {group} resumes"
        for group, value in by_resumes(runs, name).items()
        if value > MOST_GROWTH
    ]
