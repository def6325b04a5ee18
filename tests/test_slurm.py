"""The job script of docs/slurm without Slurm: stand-ins for scontrol, srun and the program."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_launchers import ROOT, Project

SCRIPT = ROOT / "docs/slurm/vpns.sbatch"
# Notes what happens; saves for a while after a signal, like the program, whatever else comes.
PROGRAM = """#!/usr/bin/env bash
saved() {
    trap 'echo "again $1" >>notes' TERM USR1 USR2
    echo "got $1" >>notes
    for i in 1 2 3; do sleep 0.1; done
    echo saved >>notes
    exit 75
}
for name in TERM USR1 USR2; do trap "saved $name" $name; done
echo "started $*" >>notes
[ "$1" = hold ] || exit "$1"
for ((i = 0; i < 400; i++)); do sleep 0.05; done
"""
# As srun does, it passes signals on to its step and ends with its code.
SRUN = """#!/usr/bin/env bash
for name in TERM USR1 USR2; do trap "kill -s $name \$!" $name; done
"$@" &
while kill -0 $!; do wait $!; done 2>/dev/null
wait $!
"""


class Job:
    """The job script in a folder of its own, where everything is noted in one file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes"
        self.tool("program", PROGRAM)
        self.tool("srun", SRUN)
        self.tool("scontrol", '#!/bin/sh\necho "scontrol $*" >>notes\n')

    def tool(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def start(self, *command: str) -> subprocess.Popen:
        path = {"PATH": f"{self.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        words = ["bash", str(SCRIPT), *command]
        return subprocess.Popen(words, cwd=self.folder, env=path, **pipes)

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + 20
        while line not in self.noted():
            assert time.monotonic() < deadline, f"{line!r} was not noted"
            time.sleep(0.02)

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def finish(process: subprocess.Popen) -> int:
    process.communicate(timeout=30)
    return process.returncode


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_command_that_ends_is_not_queued_again_and_its_code_is_the_jobs(job, code):
    assert finish(job.start("program", str(code))) == code
    assert job.noted() == [f"started {code}"]


def test_a_command_that_stops_itself_is_queued_again(job):
    assert finish(job.start("program", "75")) == 75
    assert job.noted() == ["started 75", "scontrol requeue 17"]


@pytest.mark.parametrize("name", ["USR1", "USR2"])
@pytest.mark.parametrize("command", [["program"], ["srun", "program"]], ids=["plain", "srun"])
def test_the_signal_is_passed_on_and_the_job_queued_again_after_the_save(job, name, command):
    process = job.start(*command, "hold")
    job.wait_for("started hold")
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert finish(process) == 75
    assert job.noted() == ["started hold", f"got {name}", "saved", "scontrol requeue 17"]


def test_a_second_signal_does_not_cut_the_save_short(job):
    process = job.start("program", "hold")
    job.wait_for("started hold")
    process.send_signal(signal.SIGUSR2)
    job.wait_for("got USR2")
    process.send_signal(signal.SIGUSR2)
    assert finish(process) == 75
    assert job.noted()[2:] == ["again USR2", "saved", "scontrol requeue 17"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_job_saves_and_is_not_queued_again(job, number):
    process = job.start("program", "hold")
    job.wait_for("started hold")
    process.send_signal(number)
    assert finish(process) == 75
    assert job.noted() == ["started hold", "got TERM", "saved"]


def test_a_command_that_ends_well_after_the_signal_is_not_queued_again(job):
    job.tool("program", PROGRAM.replace("exit 75", "exit 0"))
    process = job.start("program", "hold")
    job.wait_for("started hold")
    process.send_signal(signal.SIGUSR2)
    assert finish(process) == 0
    assert job.noted()[-1] == "saved"


def test_a_job_that_cannot_be_queued_again_says_so(job):
    job.tool("scontrol", "#!/bin/sh\nexit 1\n")
    process = job.start("program", "75")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75 and err.startswith("error: it was not")


def test_a_missing_command_is_named(job):
    process = job.start("no-such-program")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 127 and "no-such-program" in err


def test_without_a_command_the_script_tells_its_usage(job):
    process = job.start()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and err.startswith("usage: sbatch docs/slurm/vpns.sbatch")


def test_a_sweep_stops_all_its_runs_and_is_queued_again(tmp_path):
    project = Project(tmp_path)
    project.tool("scontrol", 'echo "scontrol $*" >>"$FAKE/queue"')
    shutil.copy(SCRIPT, project.root)
    words = ["bash", SCRIPT.name, "bash", "vpns.sh"]
    job = project.start(*words, SLURM_JOB_ID="17", GPUS="0 1", FAKE_HOLD="1")
    project.wait_for("started-7")
    project.wait_for("started-9")
    job.send_signal(signal.SIGUSR2)
    job.communicate(timeout=30)
    assert job.returncode == 75
    assert project.noted("saved") == ["USR2", "USR2"]
    assert project.noted("queue") == ["scontrol requeue 17"]
