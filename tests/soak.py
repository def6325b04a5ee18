"""Many runs that are killed at random moments and repeated, beside a few that are left in peace.

    python tests/soak.py --runs 100 --minutes 60 --seed 0

Every run must end in the bytes of the undisturbed one, leave nothing over, and need no more memory
or open files the more often it was resumed. The last line is `RESULT {json}`; when something is
wrong the exit code is 1 and the folder with the evidence stays. Linux only: it reads /proc.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
from soak_judge import by_resumes, differences, growth, left_in, leftovers, table
from soak_run import Runner, draw_plan

from utils.errors import Interrupted
from utils.signals import Stop

LENGTH = ("--epochs", 16, "--train_images", 600, "--eval_every", 4)
CASES = {
    "vpns": ("--prune_method", "vpns", "--density_list", "0.3,0.1"),
    "hydra": ("--prune_method", "hydra", "--density_list", "0.3,0.1"),
    "bip": ("--prune_method", "bip", "--density_list", "0.3,0.1"),
    "omp": ("--prune_method", "omp", "--density_list", "0.3,0.1"),
    "lth": ("--prune_method", "lth", "--density_list", "0.7,0.6"),
    "vpns, then a prompt": ("--density_list", "0.3,0.1", "--post_prompt", "finetuned",
                            "--val_fraction", 0.1),
}  # fmt: skip
WORKERS = (0, 2)
CHOICES = tuple(product(CASES, WORKERS))
LANES = 2  # runs at a time
Row = dict[str, Any]


@dataclass(frozen=True)
class Soak:
    """A folder of runs, how many are made, and until when one may begin."""

    folder: Path
    runs: int
    limit: float
    seed: int
    stop: Stop

    def undisturbed(self, number: int) -> Row:
        """Make one run in peace. Its folder stays, for the others to be compared with."""
        runner = self._runner(number, f"undisturbed{number}")
        started = time.monotonic()
        runner.make([])
        return self._row(number, runner) | {"life": time.monotonic() - started}

    def disturbed(self, number: int, undisturbed: Sequence[Row]) -> Row:
        """Make one run, killed as drawn, and judge it; what is good is removed."""
        draw = Random(f"{self.seed}/{number}")
        choice = draw.randrange(len(CHOICES))
        alone = undisturbed[choice]
        runner = self._runner(choice, f"run{number}", alone["life"])
        runner.make(draw_plan(draw, alone["life"]))
        row = {"number": number} | self._row(choice, runner) | self._judged(choice, runner)
        row["mib_ratio"], row["files_ratio"] = (row[n] / alone[n] for n in ("mib", "files"))
        wrong = row["mismatches"] + row["leftovers"] + row["bad_exits"]
        if not wrong:
            shutil.rmtree(runner.save_dir)
        print(
            f"run {number + 1} of {self.runs}: {row['case']}: killed by "
            f"{len(runner.kills)} signals, {row['resumes']} resumes: {wrong or 'the same'}",
            flush=True,
        )
        return row

    def _runner(self, choice: int, name: str, life: float = 60.0) -> Runner:
        case, workers = CHOICES[choice]
        words = (*LENGTH, *CASES[case], "--workers", workers)
        return Runner(words, self.folder / name, self.stop, life)

    def _row(self, choice: int, runner: Runner) -> Row:
        case, workers = CHOICES[choice]
        return {
            "case": f"{case}, {workers} workers",
            "save_dir": str(runner.save_dir),
            "kills": runner.kills,
            "resumes": len(runner.attempts) - 1,
            "mib": max(attempt.mib for attempt in runner.attempts),
            "files": runner.attempts[-1].files,
            "bad_exits": [asdict(a) for a in runner.attempts if not a.fine],
        }

    def _judged(self, choice: int, runner: Runner) -> Row:
        if runner.attempts[-1].code:
            return {"mismatches": [], "leftovers": runner.orphans()}
        undisturbed = left_in(self.folder / f"undisturbed{choice}")
        left = left_in(runner.save_dir)
        return {
            "mismatches": differences(undisturbed, left),
            "leftovers": leftovers(undisturbed, left, runner.save_dir) + runner.orphans(),
        }


def in_lanes(soak: Soak, name: str, count: int, make: Callable[[Soak, int], Row]) -> list[Row]:
    """The rows 0 to count - 1, made in forks of this process; those that began in time.

    Raises Interrupted when we are asked to stop, RuntimeError when a row could not be made.
    """
    board = soak.folder / name
    board.mkdir()
    lanes = {_lane(soak, board, count, make) for _ in range(LANES)}
    codes = []
    while lanes:
        if soak.stop.requested or any(codes):
            for lane in lanes:
                os.kill(lane, signal.SIGTERM)
        for lane in list(lanes):
            pid, status = os.waitpid(lane, os.WNOHANG)
            if pid:
                lanes.remove(lane)
                codes.append(status)
        time.sleep(0.1)
    if soak.stop.requested:
        soak.stop.now()
    if any(codes):
        raise RuntimeError("the soak test itself failed: see above")
    return [json.loads(path.read_text()) for path in sorted(board.glob("*.json"))]


def _lane(soak: Soak, board: Path, count: int, make: Callable[[Soak, int], Row]) -> int:
    """Fork a process that makes one row after another that no other lane has begun."""
    lane = os.fork()
    if lane:
        return lane
    code = 1
    try:
        stop = Stop()
        stop.install()
        with stop.hold():
            _work(replace(soak, stop=stop), board, count, make)
        code = 0
    except Interrupted:
        code = 75
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _work(soak: Soak, board: Path, count: int, make: Callable[[Soak, int], Row]) -> None:
    for number in range(count):
        if time.monotonic() > soak.limit:
            return
        try:
            (board / f"{number:05}").mkdir()
        except FileExistsError:
            continue
        row = make(soak, number)
        (board / f"{number:05}.json").write_text(json.dumps(row))


def undisturbed_runs(soak: Soak) -> tuple[list[Row], list[str]]:
    """The runs that are left in peace, and what is wrong: workers must not change a byte."""
    rows = in_lanes(soak, "peace", len(CHOICES), Soak.undisturbed)
    wrong = [f"{row['case']}: {exit}" for row in rows for exit in row["bad_exits"]]
    for first in range(0, len(CHOICES), len(WORKERS)):
        one, *others = (left_in(Path(r["save_dir"])) for r in rows[first : first + len(WORKERS)])
        for other in others:
            wrong += [f"{rows[first]['case']} or more: {d}" for d in differences(one, other)]
    for row in rows:
        print(f"undisturbed: {row['case']}: {row['life']:.1f} s, {row['mib']:.0f} MiB", flush=True)
    return rows, wrong


def soak_test(soak: Soak) -> Row:
    """Make all runs. Returns the RESULT values."""
    started = time.monotonic()
    cli.run(soak.folder / "warm", "--epochs", 0)  # imports what a run needs
    alone, mismatches = undisturbed_runs(soak)
    rows = [] if mismatches else in_lanes(
        soak, "disturbed", soak.runs, partial(Soak.disturbed, undisturbed=alone)
    )  # fmt: skip
    same = [row | {"mib_ratio": 1.0, "files_ratio": 1.0} for row in alone]
    result = {
        "asked": soak.runs,
        "runs": len(rows),
        "seed": soak.seed,
        "kills": dict(Counter(name for row in rows for name in row["kills"])),
        "resumes": sum(row["resumes"] for row in rows),
        "mismatches": mismatches + all_of(rows, "mismatches"),
        "leftovers": all_of(rows, "leftovers"),
        "bad_exits": all_of(rows, "bad_exits"),
        "grown": [line for n in ("mib_ratio", "files_ratio") for line in growth(same + rows, n)],
        "memory": by_resumes(same + rows, "mib"),
        "files": by_resumes(same + rows, "files"),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    print(table(same + rows, ("mib", "mib_ratio", "files", "files_ratio")))
    return result


def all_of(rows: Sequence[Row], name: str) -> list[str]:
    """What is wrong with any run, with its folder."""
    return [f"{row['save_dir']}: {value}" for row in rows for value in row[name]]


def wrong_with(result: Row) -> list[str]:
    """The names of what must be empty and is not; too few runs are wrong as well."""
    wrong = [n for n in ("mismatches", "leftovers", "bad_exits", "grown") if result[n]]
    return wrong + ["runs"] * (result["runs"] < result["asked"])


def read_flags(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="soak.py", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="runs to disturb")
    parser.add_argument("--minutes", type=float, default=60, help="after these no run begins")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the test; returns the exit code: 0 all well, 1 something is wrong, 75 stopped."""
    flags = read_flags(argv)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    stop, limit = Stop(), time.monotonic() + 60 * flags.minutes
    stop.install()
    try:
        with stop.hold():
            result = soak_test(Soak(folder, flags.runs, limit, flags.seed, stop))
    except Interrupted as error:
        shutil.rmtree(folder)
        print(f"soak test {error}", file=sys.stderr)
        return error.exit_code
    wrong = wrong_with(result)
    if wrong:
        print(f"wrong: {', '.join(wrong)}; the evidence is in {folder}")
    else:
        shutil.rmtree(folder)
    print("RESULT " + json.dumps(result | {"evidence": str(folder) if wrong else None}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
