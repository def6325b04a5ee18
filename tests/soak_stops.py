"""A small run that is stopped at random moments of its life, the imports and the end included.

    python tests/soak_stops.py --stops 300 --seed 0

Each stop must end with 75 and one line; before Python is up, by the signal; after the last line,
with 0. The run goes on with the same command until it is done, in the bytes of an undisturbed one,
and then begins afresh. The last line is `RESULT {json}`; the exit code is 1 when one was wrong.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli

WORDS = (*cli.SMALL, "--epochs", "2", "--density_list", "0.3,0.1", "--save_minutes", "0")


def start(save_dir: Path, threads: int) -> subprocess.Popen:
    """The run as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    words = [sys.executable, str(cli.ROOT / "main_vpns.py"), *WORDS, "--save_dir", str(save_dir)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def judged(code: int, out: str, err: str) -> str:
    """How a process ended that was sent a SIGTERM; a fault begins with `!`."""
    if code == 0 and "RESULT " in out:
        return "0, it was done"
    if code == -signal.SIGTERM and not out and not err:
        return "by the signal, Python was not up"
    lines = [line for line in err.splitlines() if line.startswith("error: stopped by SIGTERM")]
    if code == 75 and len(lines) == 1 and "Traceback" not in err:
        return "75, before it began" if "before it began" in err else "75, it goes on"
    return f"! {code}: {err[-300:]!r}"


def soak(stops: int, seed: int, folder: Path) -> dict[str, object]:
    """Stop runs with one and with two threads in turn; the counts of how they ended."""
    draw, ends, whole = Random(seed), Counter(), {}
    life, begun = {}, {}
    for threads in (1, 2):
        began = time.monotonic()
        process = start(folder / f"whole{threads}", threads)
        assert process.stdout.readline()
        begun[threads] = time.monotonic() - began
        process.communicate()
        life[threads] = round(time.monotonic() - began, 1)
        whole[threads] = cli.hashes(cli.only_run(folder / f"whole{threads}"))
    runs: Counter[int] = Counter()
    for stop in range(stops):
        threads = 1 + stop % 2
        process = start(folder / f"run{threads}-{runs[threads]}", threads)
        if draw.random() < 0.7:  # the imports take the longest: most stops come after them
            first = process.stdout.readline()
            time.sleep(draw.uniform(0, 1.05 * (life[threads] - begun[threads])))
        else:
            first = ""
            time.sleep(draw.uniform(0, begun[threads]))
        process.send_signal(signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=60)
            end = judged(process.returncode, first + out, err)
        except subprocess.TimeoutExpired:
            process.kill()
            end = "! it hangs"
        ends[end] += 1
        if end.startswith("0"):
            if cli.hashes(cli.only_run(folder / f"run{threads}-{runs[threads]}")) != whole[threads]:
                ends["! other bytes than those of an undisturbed run"] += 1
            runs[threads] += 1
        print(f"stop {stop + 1} of {stops}, {threads} threads: {end}", flush=True)
    faults = sum(count for end, count in ends.items() if end.startswith("!"))
    return {"stops": stops, "seed": seed, "ends": dict(ends), "faults": faults,
            "runs": sum(runs.values()), "seconds_of_a_run": life}  # fmt: skip


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(flags.stops, flags.seed, Path(folder))
    print("RESULT " + json.dumps(result))
    return int(result["faults"] > 0)


if __name__ == "__main__":
    sys.exit(main())
