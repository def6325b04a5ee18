"""A whole run, ours against the authors' habits: search, fine-tuning, evaluation, saving.

    python benchmarks/job.py --case a     ResNet-18, 32 px, 2,000 images of Fashion-MNIST
    python benchmarks/job.py --case b     ResNet-20, 16 px, digits

On two CPU cores case a takes some ten minutes and case b some six, half of it with one seed.

Each run is a process of its own, timed from start to end: ours is main_vpns.py, the other
reference_run.py, with the same flags. Both start from the same random weights of each seed.
Memory is the peak of the largest process. A dense run of ours tells how many copies of the
weights the search adds to it, `copies_over_dense`, unless a copy is lost in the noise.
"""

import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# This process imports no torch: on Linux a child's peak memory begins with its parent's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import (
    add_device,
    flags,
    positives,
    print_result,
    print_table,
    ratios,
    spread,
)

ROOT = Path(__file__).resolve().parent.parent
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist
IMAGES = {"train": 2000, "t10k": 1000}  # of Fashion-MNIST
NOISE = 32 << 20  # bytes: the peak memory of two alike processes differs by less
OURS, REFERENCE, DENSE = "ours", "reference", "dense"
COMMON = "--weights none --pad_size 2 --batch_size 32 --density_list 1,0.5,0.2"
CASES = {
    "a": "--network resnet18 --dataset fashion_mnist --input_size 32 --output_size 32 --epochs 2",
    "b": "--network resnet20 --dataset digits --input_size 16 --output_size 16 --epochs 6",
}
QUICK = "--train_images 128 --epochs 1 --density_list 1,0.2"
MODULES = {OURS: ["main_vpns"], REFERENCE: ["benchmarks.reference_run"]}
MODULES[DENSE] = [*MODULES[OURS], "--prune_method", "dense"]


def cut_fashion_mnist(source: Path, target: Path) -> None:
    """Write the first images of each split as idx files. Raises OSError or EOFError."""
    for split, count in IMAGES.items():
        for kind, head, item in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            name = f"{split}-{kind}-ubyte"
            with gzip.open(source / f"{name}.gz") as file:
                data = file.read(head + count * item)
            start = data[:4] + count.to_bytes(4, "big") + data[8:head]
            (target / name).write_bytes(start + data[head:])


def run_once(kind: str, words: Sequence[str]) -> dict[str, Any]:
    """One run in a process of its own: its seconds, peak memory in bytes and the rows of RESULT."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as out:
        command = [sys.executable, "-m", *MODULES[kind], *words, "--save_dir", folder]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        lines = out.read().splitlines()
    if process.returncode:
        sys.exit(f"error: the {kind} run ended with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    rows = json.loads(lines[-1].removeprefix("RESULT "))["rows"]
    return {"run": kind, "seconds": seconds, "memory": usage.ru_maxrss * unit, "rows": rows}


def measure(words: Sequence[str], seeds: Sequence[int], case: str) -> list[dict[str, Any]]:
    """Ours and the reference's for each seed, by turns, and a dense one; stderr tells of each."""
    plan = []
    for number, seed in enumerate(seeds):
        order = (REFERENCE, OURS) if number % 2 else (OURS, REFERENCE)
        plan += [(kind, seed) for kind in order]
    plan.append((DENSE, seeds[0]))
    runs = []
    for number, (kind, seed) in enumerate(plan, start=1):
        run = f"case {case}, run {number} of {len(plan)}: {kind}, seed {seed}"
        print(run, file=sys.stderr)
        runs.append(run_once(kind, [*words, "--seed", str(seed)]) | {"seed": seed})
        print(f"{run}: {runs[-1]['seconds']:.1f} s", file=sys.stderr)
    return runs


def table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a run."""
    return [
        {
            "run": run["run"],
            "seed": run["seed"],
            "seconds": run["seconds"],
            "peak MiB": run["memory"] / (1 << 20),
            "accuracy %": ", ".join(f"{r['clean']:.2f} at {r['density']}" for r in run["rows"]),
        }
        for run in runs
    ]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reference over ours, by seed; copies of the weights that the search adds to dense."""
    ordered = sorted(runs, key=lambda run: run["seed"])
    by_kind = {kind: [r for r in ordered if r["run"] == kind] for kind in MODULES}
    ours, theirs, (dense,) = by_kind.values()
    result: dict[str, Any] = {
        name: ratios([run[name] for run in theirs], [run[name] for run in ours])
        for name in ("seconds", "memory")
    }
    weights = 4 * ours[0]["rows"][0]["prunable"]
    if weights > NOISE:
        copies = [(run["memory"] - dense["memory"]) / weights for run in ours]
        result["copies_over_dense"] = spread(copies)
    result["accuracy"] = {OURS: accuracies(ours), REFERENCE: accuracies(theirs)}
    return result


def accuracies(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean over the runs, by density."""
    levels = zip(*(run["rows"] for run in runs), strict=True)
    return {
        str(rows[0]["density"]): statistics.mean(row["clean"] for row in rows) for rows in levels
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = flags(__doc__)
    parser.add_argument("--case", choices=CASES, default="a")
    parser.add_argument("--data", default=FASHION_MNIST, help="folder of Fashion-MNIST, for a")
    parser.add_argument("--seeds", type=positives, default="7,9", help="a run of each for each")
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="few images, one epoch and density")
    args = parser.parse_args(argv)
    words = [*COMMON.split(), "--device", args.device, *CASES[args.case].split()]
    words += QUICK.split() if args.quick else []
    with tempfile.TemporaryDirectory() as folder:
        if args.case == "a":
            try:
                cut_fashion_mnist(Path(args.data), Path(folder))
            except (OSError, EOFError) as error:
                sys.exit(
                    f"error: {error}: give --data the folder of Fashion-MNIST's four .gz files "
                    "(Debian: dataset-fashion-mnist)"
                )
        runs = measure([*words, "--data", folder], args.seeds, args.case)
    print_table(table(runs))
    print_result(case=args.case, **summary(runs))


if __name__ == "__main__":
    main()
