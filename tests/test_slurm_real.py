"""Sweeps and runs of several machines on a real Slurm, which has two nodes on this machine."""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli import ROOT, hashes, only_run

MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a Slurm of one's own needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"no {MISSING}: apt install slurm-wlm munge"),
]
SWEEP = {
    "METHODS": "vpns hydra snip random", "SEEDS": "7 9", "NETWORK": "resnet20",
    "DATASET": "digits", "DENSITIES": "0.2", "EPOCHS": "10", "LAUNCHER": "slurm", "GPUS": "",
    "CPUS": "1", "JOBS": "4",
}  # fmt: skip
SMALL = ("--batch_size", "64", "--input_size", "8", "--output_size", "8", "--pad_size", "1",
         "--train_images", "640")  # fmt: skip


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands reach a Slurm of two nodes."""
    folder, script = tmp_path_factory.mktemp("slurm"), str(ROOT / "tests/one_machine_slurm.sh")
    try:
        subprocess.run(["bash", script, "start", str(folder)], check=True, capture_output=True)
        yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable,
                            "OMP_NUM_THREADS": "1"}  # fmt: skip
    finally:
        subprocess.run(["bash", script, "stop", str(folder)], check=False)


def shell(environment: dict[str, str], *words: str) -> str:
    """What a command prints, run in the project's folder."""
    done = subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def queue(environment: dict[str, str]) -> list[tuple[str, str, str]]:
    """Number, state and reason of the jobs that are not over."""
    text = shell(environment, "squeue", "-h", "-r", "-o", "%A %T %r")
    return [tuple(line.split(" ", 2)) for line in text.splitlines()]


def wait(moment: Callable[[], object], seconds: int = 400) -> None:
    """Wait until a moment comes."""
    end = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < end, "the moment did not come"
        time.sleep(0.5)


def drained(environment: dict[str, str]) -> bool:
    """Whether all jobs are over; jobs that Slurm puts off for two minutes begin at once."""
    jobs = queue(environment)
    for number, state, reason in jobs:
        if state == "PENDING" and reason == "BeginTime":
            words = ("scontrol", "update", f"JobId={number}", "StartTime=now")
            subprocess.run(words, env=environment, check=False, capture_output=True)
    return not jobs


def sweep(environment: dict[str, str], save_dir: Path) -> Path:
    """Submit a sweep of eight cells; its folder."""
    out = shell(environment | SWEEP | {"SAVE_DIR": str(save_dir)}, "bash", "vpns.sh", *SMALL)
    assert out.count("queued ") == 9
    return save_dir / "vpns"


def signal_all(environment: dict[str, str]) -> None:
    """Warn the jobs that run, as Slurm does before their time is up."""
    running = [number for number, state, _ in queue(environment) if state == "RUNNING"]
    words = ["scancel", "--batch", "--signal=USR2", *running]  # one may just end
    subprocess.run(words, env=environment, check=False, capture_output=True)


def logs(folder: Path) -> str:
    """What the jobs of a sweep have printed."""
    return "".join(path.read_text() for path in sorted(folder.glob("logs/slurm-*_*.log")))


def accuracies(folder: Path) -> list[list[str]]:
    """The table of a report, but for the time that it took."""
    with open(folder / "report/table.csv") as file:
        return [row[:11] for row in csv.reader(file)]


def on_node2(environment: dict[str, str]) -> bool:
    """Whether a job runs on the second node."""
    return "node2" in shell(environment, "squeue", "-h", "-t", "RUNNING", "-o", "%N")


def states_in(folder: Path) -> list[Path]:
    return [*folder.glob("*/*/d0.2/*"), *folder.glob("*/*/metrics.jsonl")]


def test_a_sweep_that_is_signalled_and_loses_a_node_ends_in_the_report_of_one_without_faults(
    slurm, tmp_path
):
    calm = sweep(slurm, tmp_path / "calm")
    wait(lambda: drained(slurm))
    folder = sweep(slurm, tmp_path / "faults")
    wait(lambda: len(states_in(folder)) >= 3)
    signal_all(slurm)
    wait(lambda: "is queued again" in logs(folder))
    wait(lambda: on_node2(slurm))
    shell(slurm, "scontrol", "update", "nodename=node2", "state=down", "reason=test")
    wait(lambda: not on_node2(slurm))
    back = ("scontrol", "update", "nodename=node2", "state=resume")  # it may be back by itself
    subprocess.run(back, env=slurm, check=False, capture_output=True)
    wait(lambda: drained(slurm), 600)
    assert accuracies(folder) == accuracies(calm)
    assert "continuing" in logs(folder) and "NODE FAILURE" in logs(folder)
    assert logs(folder).count("RESULT ") == 8


def test_a_run_over_two_nodes_that_is_signalled_goes_on_and_ends_like_one_that_is_not(
    slurm, tmp_path
):
    def submit(name: str) -> str:
        words = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--gpus=0",
                 "--cpus-per-task=1", f"--output={tmp_path / name}.log", "docs/slurm/vpns.sbatch",
                 "srun", "--gpus=0", "docs/slurm/torchrun.sh", "main_vpns.py", "--network",
                 "resnet20", "--dataset", "digits", "--density_list", "0.2", "--epochs", "12",
                 "--device", "cpu", "--save_dir", str(tmp_path / name), *SMALL]  # fmt: skip
        return shell(slurm | {"PROCESSES": "1"}, *words).strip()

    submit("calm")
    wait(lambda: drained(slurm))
    number = submit("signalled")
    metrics = "*/*/*/metrics.jsonl"  # which is empty until an epoch is over
    wait(lambda: any(p.stat().st_size for p in (tmp_path / "signalled").glob(metrics)))
    shell(slurm, "scancel", "--batch", "--signal=USR2", number)
    wait(lambda: "RESULT " in (tmp_path / "signalled.log").read_text())
    log = (tmp_path / "signalled.log").read_text()
    assert f"job {number} is queued again" in log and "continuing" in log
    assert len(re.findall("^RESULT ", log, re.MULTILINE)) == 1
    calm, signalled = (only_run(tmp_path / name) for name in ("calm", "signalled"))
    assert hashes(calm) == hashes(signalled)
