"""A whole run, ours against the authors' habits: search, fine-tuning, evaluation, saving.

    python benchmarks/job.py --case a     ResNet-18, 32 px, 2,000 images of Fashion-MNIST
    python benchmarks/job.py --case b     ResNet-20, 16 px, digits

On two CPU cores case a takes some ten minutes and case b some six, half of it with one seed.

Each run is a process of its own, timed from start to end: ours is main_vpns.py, the other
reference_run.py. Both start from the same random weights of each seed. A dense run of ours
shows how much memory the search adds. Memory is the peak of the largest process.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# This process imports no torch: on Linux a child's peak memory begins with its parent's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.flags import Parser, several, whole
from benchmarks.timing import print_result, print_table, ratios, spread

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist
OURS, REFERENCE, DENSE = "ours", "reference", "dense"
WANDERS = 32 << 20  # more bytes than the peak memory of two alike processes differs by


@dataclass(frozen=True)
class Job:
    """What is run: the same for every contender. Sizes in pixels."""

    network: str
    dataset: str
    size: int
    epochs: int  # of the search, and again of fine-tuning
    train_images: int
    test_images: int
    pad_size: int = 2
    batch: int = 32
    densities: tuple[float, ...] = (0.5, 0.2)
    seed: int = 7
    data: str = "."
    save_dir: str = "."

    def flags(self) -> list[str]:
        """The command line of main_vpns.py."""
        values = {
            "network": self.network, "weights": "none", "dataset": self.dataset,
            "data": self.data, "input_size": self.size, "output_size": self.size,
            "pad_size": self.pad_size, "batch_size": self.batch, "epochs": self.epochs,
            "train_images": self.train_images, "seed": self.seed, "save_dir": self.save_dir,
            "density_list": ",".join(map(str, (1, *self.densities))), "device": "cpu",
        }  # fmt: skip
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]


CASES = {
    "a": Job("resnet18", "fashion_mnist", 32, 2, train_images=2000, test_images=1000),
    "b": Job("resnet20", "digits", 16, 6, train_images=1437, test_images=360),
}


def cut_fashion_mnist(source: Path, target: Path, job: Job) -> None:
    """Write the first images of each split, as many as the job asks for, as idx files."""
    for split, count in (("train", job.train_images), ("t10k", job.test_images)):
        for kind, head, item in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            name = f"{split}-{kind}-ubyte"
            with gzip.open(source / f"{name}.gz") as file:
                data = file.read(head + count * item)
            start = data[:4] + count.to_bytes(4, "big") + data[8:head]
            (target / name).write_bytes(start + data[head:])


def run_child(kind: str, job: Job) -> dict[str, Any]:
    """One run in a process of its own: its report, and what the system says of it."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as out:
        text = json.dumps(asdict(replace(job, save_dir=folder)))
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, __file__, "--child", kind, text], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        lines = out.read().splitlines()
    if process.returncode:
        sys.exit(f"error: the {kind} run ended with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    report = json.loads(lines[-1])
    return report | {"run": kind, "seconds": seconds, "memory": usage.ru_maxrss * unit}


def child(kind: str, job: Job) -> None:
    """Run the job in this process and print the report as the last line."""
    start = time.perf_counter()
    if kind == REFERENCE:
        from benchmarks.reference_run import run

        imported = time.perf_counter()
        found = run(job)
    else:
        import main_vpns

        imported = time.perf_counter()
        found = ours(main_vpns, [*job.flags(), *(["--prune_method", "dense"] * (kind == DENSE))])
    found |= {"imports": imported - start, "written": written()}
    print("\n" + json.dumps(found))


def ours(program: Any, flags: list[str]) -> dict[str, Any]:
    """Run main_vpns.py and read its RESULT line."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = program.main(flags)
    if code:
        sys.exit(code)
    rows = json.loads(out.getvalue().splitlines()[-1].removeprefix("RESULT "))["rows"]
    accuracies = {str(row["density"]): row["clean"] for row in rows}
    return {"accuracies": accuracies, "prunable": rows[0]["prunable"]}


def written() -> int | None:
    """Bytes that this process has written so far, where the system counts them."""
    counts = Path("/proc/self/io")
    if not counts.exists():
        return None
    return int(dict(line.split(": ") for line in counts.read_text().splitlines())["wchar"])


def planned(seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Every run: ours and the reference's for each seed, in turns, and a dense one."""
    runs = []
    for number, seed in enumerate(seeds):
        order = (OURS, REFERENCE) if number % 2 == 0 else (REFERENCE, OURS)
        runs += [(kind, seed) for kind in order]
    return [*runs, (DENSE, seeds[0])]


def measure(job: Job, seeds: Sequence[int], case: str) -> list[dict[str, Any]]:
    """Make every run, with a line on stderr for each."""
    plan, runs = planned(seeds), []
    for number, (kind, seed) in enumerate(plan, start=1):
        run = f"case {case}, run {number} of {len(plan)}: {kind}, seed {seed}"
        print(run, file=sys.stderr)
        runs.append(run_child(kind, replace(job, seed=seed)) | {"seed": seed})
        print(f"{run}: {runs[-1]['seconds']:.1f} s", file=sys.stderr)
    return runs


def table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a run."""
    mega = 1 << 20
    return [
        {
            "run": run["run"],
            "seed": run["seed"],
            "seconds": run["seconds"],
            "imports s": run["imports"],
            "peak MiB": run["memory"] / mega,
            "written MiB": run["written"] / mega if run["written"] else None,
            "accuracy %": ", ".join(f"{a:.2f} at {d}" for d, a in run["accuracies"].items()),
        }
        for run in runs
    ]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reference over ours, by seed; copies of the weights that the search adds to dense.

    Copies are left out where one is smaller than what the memory of a process wanders by.
    """
    by_kind = {kind: [r for r in runs if r["run"] == kind] for kind in (OURS, REFERENCE, DENSE)}
    for kind in (OURS, REFERENCE):
        by_kind[kind].sort(key=lambda run: run["seed"])

    def values(kind: str, name: str) -> list[float]:
        return [run[name] for run in by_kind[kind]]

    found: dict[str, Any] = {
        name: ratios(values(REFERENCE, name), values(OURS, name))
        for name in ("seconds", "memory", "written")
        if None not in values(OURS, name)
    }
    (dense,) = values(DENSE, "memory")
    weights = 4 * by_kind[OURS][0]["prunable"]
    if weights > WANDERS:
        copies = [(m - dense) / weights for m in values(OURS, "memory")]
        found["copies_over_dense"] = spread(copies)
    found["accuracy"] = {
        kind: {
            density: statistics.mean(run["accuracies"][density] for run in by_kind[kind])
            for density in by_kind[kind][0]["accuracies"]
        }
        for kind in (OURS, REFERENCE)
    }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = Parser(__doc__.strip())
    parser.add_argument("--case", choices=CASES, default="a")
    parser.add_argument("--data", default=FASHION_MNIST, help="folder of Fashion-MNIST, for a")
    parser.add_argument(
        "--seeds", type=several(whole(0)), default="7,9", help="a run of each for each seed"
    )
    parser.add_argument("--quick", action="store_true", help="few images, one epoch and density")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        child(args.child[0], Job(**json.loads(args.child[1])))
        return
    job = CASES[args.case]
    if args.quick:
        few = {"train_images": 128, "test_images": min(128, job.test_images)}
        job = replace(job, epochs=1, densities=(0.2,), **few)
    with tempfile.TemporaryDirectory() as folder:
        if job.dataset == "fashion_mnist":
            try:
                cut_fashion_mnist(Path(args.data), Path(folder), job)
            except (OSError, EOFError) as error:
                sys.exit(
                    f"error: {error}: give --data the folder of Fashion-MNIST's four .gz files "
                    "(Debian: dataset-fashion-mnist)"
                )
            job = replace(job, data=folder)
        runs = measure(job, args.seeds, args.case)
    found = summary(runs)
    print_table(table(runs))
    if "copies_over_dense" not in found:
        print("copies_over_dense is left out: memory wanders by more than these weights have")
    print_result(case=args.case, **found)


if __name__ == "__main__":
    main()
