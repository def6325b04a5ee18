"""The soak test: what it takes for wrong, and a short one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli import forked
from soak import Row, wrong_with
from soak_judge import by_resumes, differences, growth, left_in, leftovers
from soak_run import Attempt
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from runfolder.run import lock

SOAK = [sys.executable, str(Path(__file__).with_name("soak.py"))]
RUN = "vpns/resnet20-digits-vpns/seed7-0123abcd"
FILES = {
    f"{RUN}/d0.1/model.safetensors": "weights",
    f"{RUN}/results.csv": "density,clean\n0.1,50.0\n",
    f"{RUN}/metrics.jsonl": '{"epoch": 0, "loss": 0.5, "seconds": 1.25}\n',
    f"{RUN}/run.json": '{"state": "done"}',
    f"{RUN}/run.lock": "process 1",
    f"{RUN}/events.out.tfevents.1.host": "",
    "vpns/shared/dense-01.safetensors": "shared",
}


def save_dir(folder: Path, **changed: str) -> Path:
    """What a run left, with other texts in the files whose names end so (`_` for `.`)."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ends = [end for end in changed if name.endswith(end.replace("_", "."))]
        path.write_text(changed[ends[0]] if ends else text)
    return folder


@pytest.fixture
def undisturbed(tmp_path: Path) -> Any:
    return left_in(save_dir(tmp_path / "undisturbed"))


def judged(undisturbed: Any, folder: Path) -> tuple[list[str], list[str]]:
    left = left_in(folder)
    return differences(undisturbed, left), leftovers(undisturbed, left, folder)


def test_the_same_files_are_fine_whatever_their_times_and_tensorboard_files(
    undisturbed: Any, tmp_path: Path
) -> None:
    changed = {"metrics_jsonl": '{"epoch": 0, "loss": 0.5, "seconds": 9.0}\n'}
    again = save_dir(tmp_path / "again", **changed)
    (again / RUN / "events.out.tfevents.2.host").touch()
    assert judged(undisturbed, again) == ([], [])


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"model_safetensors": "Weights"}, f"{RUN}/d0.1/model.safetensors"),
        ({"01_safetensors": "Shared"}, "vpns/shared/dense-01.safetensors"),
        ({"results_csv": "density,clean\n0.1,50.1\n"}, f"{RUN}/results.csv"),
        ({"metrics_jsonl": '{"epoch": 0, "loss": 0.6, "seconds": 1.25}\n'}, "metrics.jsonl"),
    ],
)
def test_a_changed_byte_is_a_mismatch(
    undisturbed: Any, tmp_path: Path, changed: dict[str, str], name: str
) -> None:
    assert judged(undisturbed, save_dir(tmp_path / "again", **changed)) == ([name], [])


def test_a_missing_result_is_a_mismatch(undisturbed: Any, tmp_path: Path) -> None:
    again = save_dir(tmp_path / "again")
    (again / RUN / "d0.1/model.safetensors").unlink()
    found, _ = judged(undisturbed, again)
    assert found == [f"{RUN}/d0.1/model.safetensors", f"{RUN}/d0.1/model.safetensors is missing"]


@pytest.mark.parametrize(
    "name",
    [f"{RUN}/d0.1/state-3.pt", f"{RUN}/.results.csv.12.tmp", "vpns/shared/.dense.12.tmp"],
)
def test_a_file_that_an_undisturbed_run_does_not_leave_is_a_leftover(
    undisturbed: Any, tmp_path: Path, name: str
) -> None:
    again = save_dir(tmp_path / "again")
    (again / name).touch()
    assert judged(undisturbed, again) == ([], [name])


def test_a_run_that_is_not_done_is_a_leftover(undisturbed: Any, tmp_path: Path) -> None:
    again = save_dir(tmp_path / "again", run_json='{"state": "interrupted"}')
    assert judged(undisturbed, again) == ([], ["run.json is not done"])


def test_a_lock_that_is_still_held_is_a_leftover(undisturbed: Any, tmp_path: Path) -> None:
    again = save_dir(tmp_path / "again")
    ready, done = os.pipe(), os.pipe()
    if not (holder := os.fork()):
        held = lock(again / RUN / "run.lock")
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(held is None)
    os.read(ready[0], 1)
    try:
        assert judged(undisturbed, again) == ([], ["run.lock is held"])
    finally:
        os.write(done[1], b"x")
        os.waitpid(holder, 0)
        for end in (*ready, *done):
            os.close(end)


def test_a_run_killed_while_it_draws_its_bar_does_not_stop_the_next(tmp_path: Path) -> None:
    def die_with_the_lock() -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    tqdm.get_lock()  # made here, as by a bar of this process: forks would share it
    assert forked(tmp_path / "run", before=die_with_the_lock).code == -signal.SIGKILL
    shared = TqdmDefaultWriteLock.mp_lock
    assert shared.acquire(block=False)
    shared.release()


@pytest.mark.parametrize(
    ("code", "sent", "err", "fine"),
    [
        (0, [], "", True),
        (0, ["SIGTERM"], "", True),
        (75, ["SIGTERM"], "", True),
        (75, [], "", False),
        (-signal.SIGKILL, ["SIGINT", "SIGKILL"], "", True),
        (-signal.SIGKILL, ["SIGINT"], "", False),
        (-signal.SIGSEGV, ["SIGKILL"], "", False),
        (1, ["SIGTERM"], "", False),
        (75, ["SIGTERM"], "Traceback (most recent call last)", False),
    ],
)
def test_an_attempt_is_done_or_stopped_by_what_was_sent(
    code: int, sent: list[str], err: str, fine: bool
) -> None:
    assert Attempt(code, sent, 100.0, 9, err).fine is fine


RUNS = [{"resumes": n, "mib_ratio": 1 + n / 100} for n in (0, 0, 1, 2, 4, 6, 30)]


def test_medians_are_by_the_number_of_resumes() -> None:
    assert by_resumes(RUNS, "mib_ratio") == {"0": 1.0, "1-2": 1.015, "3-5": 1.04, "6+": 1.18}


def test_growth_is_named() -> None:
    assert growth(RUNS, "mib_ratio") == ["mib_ratio is 1.180 times as much after 6+ resumes"]


FINE: Row = {
    "asked": 3, "runs": 3, "mismatches": [], "leftovers": [], "bad_exits": [], "grown": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, []),
        ({"leftovers": ["x"]}, ["leftovers"]),
        ({"grown": ["x"], "bad_exits": ["y"]}, ["bad_exits", "grown"]),
        ({"runs": 2}, ["runs"]),
    ],
)
def test_anything_found_and_a_missing_run_is_wrong(change: Row, wrong: list[str]) -> None:
    assert wrong_with(FINE | change) == wrong


@pytest.mark.slow
def test_a_short_soak_finds_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [*SOAK, "--runs", "3"], env=os.environ | {"TMPDIR": str(tmp_path)}, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["runs"] == 3 and sum(result["kills"].values()) > 0
    assert not list(tmp_path.glob("soak-*"))


@pytest.mark.slow
def test_a_soak_that_is_terminated_ends_its_runs_and_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(SOAK, env=os.environ | {"TMPDIR": str(tmp_path)})
    while not list(tmp_path.glob("soak-*/undisturbed*/*/*/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.terminate()
    assert process.wait(60) == 75
    assert not list(tmp_path.glob("soak-*"))
    assert len(children) == 2 and not any(Path("/proc", pid).exists() for pid in children)
