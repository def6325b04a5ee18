"""Signals at any moment: exit code 75, one line, no traceback, nobody left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli import (
    ROOT,
    SMALL,
    at_call,
    finish,
    forked,
    hashes,
    only_run,
    run,
    send,
    start,
    wait_for,
)
from report_runs import make_run
from test_cli_run import write_images

import main_vpns
from data import decoding, faults, opening
from models.classifier import PromptedClassifier
from program import evaluation, model, record
from runfolder import level as level_module
from runfolder.run import Run
from runfolder.surroundings import Surroundings
from utils.signals import SIGNALS, Stop

QUICK = ["--density_list", "0.1", "--eval_every", 0, "--input_size", 4, "--output_size", 4]
GOES_ON = "stopped by {}; the same command continues from here"
STARTS_AGAIN = "stopped by {}; run the command again"


@pytest.fixture(autouse=True)
def plain_picture(monkeypatch):
    """Drawing takes as long as training here, and is tested elsewhere."""
    monkeypatch.setattr(record, "draw_run", lambda run: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), *QUICK)


# Before anything has begun


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A module that sends a signal as soon as it is imported, in place of a heavy one."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"))

    def write(module, name):
        folder = tmp_path / "stubs"
        folder.mkdir()
        (folder / f"{module}.py").write_text(
            f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(20)\n"
        )

    return write


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_during_the_imports_ends_the_program_with_one_line(stub, tmp_path, name):
    stub("torch", name)
    ended = finish(start("--save_dir", tmp_path / "result"))
    assert ended.code == 75 and not (tmp_path / "result").exists()
    assert ended.error == f"stopped by {name} before it began; run the command again"


# In each phase of a run

PHASES = {
    "looking for the data": (opening, "locate", 1, False),
    "the fingerprint of the images": (Surroundings, "require_data", 1, False),
    "mapping the labels": (model, "count_predictions", 1, False),
    "measuring before the search": (PromptedClassifier, "forward", 2, False),
    "measuring after the search": (level_module, "save_model", 1, False),
    "writing the end of the search": (level_module, "save_model", 1, True),
    "the last measurement": (main_vpns, "evaluate", 1, True),
    "the table": (Run, "write_results", 1, False),
    "the picture": (record, "draw_run", 1, False),
    "the last word": (Run, "close", 1, False),
}


@pytest.mark.parametrize("phase", PHASES)
def test_signal_in_any_phase_stops_with_one_line_and_the_run_goes_on(undisturbed, tmp_path, phase):
    owner, name, number, after = PHASES[phase]
    hook = (owner, name, number, send("SIGTERM"), after)
    stopped = forked(tmp_path / "run", *QUICK, before=lambda: at_call(*hook))
    assert stopped.code == 75 and stopped.error.startswith("stopped by SIGTERM; ")
    assert hashes(run(tmp_path / "run", *QUICK).folder) == hashes(undisturbed.folder)


def test_closed_terminal_costs_nothing_though_nothing_can_be_said(undisturbed, tmp_path):
    ours, theirs = os.openpty()

    def hang_up():
        os.close(ours)
        send("SIGHUP")()

    def before():
        for number in (1, 2):
            os.dup2(theirs, number)
        at_call(PromptedClassifier, "forward", 4, hang_up, False)

    stopped = forked(tmp_path / "run", *QUICK, before=before)
    assert stopped.code == 75
    state = json.loads((only_run(tmp_path / "run") / "run.json").read_text())
    assert state["state"] == "interrupted" and "SIGHUP" in state["reason"]
    assert hashes(run(tmp_path / "run", *QUICK).folder) == hashes(undisturbed.folder)


def test_signal_before_the_folder_is_open_does_not_promise_to_continue(tmp_path):
    hook = (Run, "__init__", 1, send("SIGUSR1"), False)
    stopped = forked(tmp_path / "run", *QUICK, before=lambda: at_call(*hook))
    assert stopped.error == STARTS_AGAIN.format("SIGUSR1")


def test_signal_after_the_result_is_too_late(tmp_path):
    hook = (Stop, "ignore", 1, send("SIGTERM"), True)
    ended = forked(tmp_path / "run", *QUICK, "--epochs", 0, before=lambda: at_call(*hook))
    assert ended.result["rows"]


def test_second_signal_while_the_stop_is_written_down_is_ignored(tmp_path):
    def arm():
        at_call(PromptedClassifier, "forward", 3, send("SIGINT"), False)
        at_call(Run, "state", 2, send("SIGTERM"), False)

    stopped = forked(tmp_path / "run", *QUICK, before=arm)
    state = json.loads((only_run(tmp_path / "run") / "run.json").read_text())
    assert stopped.code == 75 and stopped.error == GOES_ON.format("SIGINT")
    assert state["state"] == "interrupted" and state["reason"] == stopped.error


# Commands that keep nothing


@pytest.mark.parametrize("moment", [(evaluation, "load_data"), (PromptedClassifier, "forward")])
def test_signal_during_an_evaluation_is_one_line(undisturbed, tmp_path, moment):
    model = undisturbed.folder / "d0.1/model.safetensors"
    hook = (*moment, 1, send("SIGUSR2"), False)
    stopped = forked(tmp_path / "none", "--evaluate", model, before=lambda: at_call(*hook))
    assert stopped.code == 75 and stopped.error == STARTS_AGAIN.format("SIGUSR2")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("words", [[], ["--data", "nowhere", "--dataset", "imagefolder"]])
def test_signal_after_the_data_were_checked_is_too_late(tmp_path, words):
    hook = (Stop, "ignore", 1, send("SIGTERM"), True)
    words = ["--check_data", *words]
    ended = forked(tmp_path / "none", *words, before=lambda: at_call(*hook))
    assert ended.code == (4 if "--data" in words else 0) and "stopped" not in ended.err


def test_signal_during_a_report_is_one_line_and_leaves_nothing(stub, tmp_path):
    stub("matplotlib", "SIGINT")
    make_run(tmp_path / "runs", "vpns", 7, {0.1: 80.0})
    words = [sys.executable, "-m", "utils.report", tmp_path / "runs", "--out", tmp_path / "out"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 75 and not ended.stdout
    assert ended.stderr == f"error: {STARTS_AGAIN.format('SIGINT')}\n"
    assert not list((tmp_path / "out").glob(".*"))


# Workers


def session(number):
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            process, _, rest = path.read_text().partition(" (")
        except OSError:  # it has just ended
            continue
        if int(rest.rpartition(") ")[2].split()[3]) == number:
            found.append(int(process))
    return found


@pytest.fixture
def files(tmp_path):
    """A run that decodes image files in two threads, and writes a state when it is stopped."""
    write_images(tmp_path / "images")
    return ["--dataset", "imagefolder", "--data", tmp_path / "images", "--train_images", 0,
            "--density_list", "0.1", "--batch_size", 4, "--workers", 2, "--save_every", 9]


BUSY = {
    "filling the cache": (["--cache_gb", 1], (decoding, "decode", 3)),
    "a step": (["--cache_gb", 0], (PromptedClassifier, "forward", 3)),
    "checking the data": (["--check_data"], (faults, "examine", 1)),
}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
@pytest.mark.parametrize("phase", BUSY)
def test_signal_while_threads_decode_ends_the_run_with_one_line(files, tmp_path, phase, name):
    words, moment = BUSY[phase]
    hook = (*moment, send(name), False)
    stopped = forked(tmp_path / "run", *files, *words, before=lambda: at_call(*hook))
    assert stopped.code == 75 and stopped.error.startswith(f"stopped by {name}; ")


def test_run_stopped_with_workers_goes_on_without_them_to_the_same_bytes(files, tmp_path):
    words = [*files, "--cache_gb", 0]
    hook = (PromptedClassifier, "forward", 3, send("SIGTERM"), False)
    forked(tmp_path / "run", *words, before=lambda: at_call(*hook))
    again, whole = run(tmp_path / "run", *words, "--workers", 0), run(tmp_path / "whole", *words)
    assert "continuing search after step 1 of epoch 1" in again.out
    assert hashes(again.folder) == hashes(whole.folder)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_signal_to_the_group_of_a_process_of_its_own_leaves_nobody(files, tmp_path):
    words = [*SMALL, *files, "--cache_gb", 0, "--epochs", 500, "--save_dir", tmp_path / "run"]
    process = start(*words, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob("run/*/*/*/metrics.jsonl")), process)
    os.killpg(process.pid, signal.SIGTERM)
    stopped = finish(process)
    assert stopped.code == 75 and stopped.error == GOES_ON.format("SIGTERM")
    assert session(process.pid) == []
