"""Runs that are killed, stopped or damaged, and the same command again."""

import json
import os
import platform
import signal
import time

import pytest
import torch
from cli import (
    SMALL,
    at_call,
    files,
    finish,
    fork,
    forked,
    hashes,
    metrics,
    only_run,
    run,
    send,
    start,
)

from models.classifier import PromptedClassifier
from program import record
from utils.checkpoint import States
from utils.level import Level
from utils.runlog import Run

QUICK = ["--epochs", 2, "--eval_every", 0, "--input_size", 4, "--output_size", 4]
FLAGS = ["--density_list", "0.1", *QUICK]
KILL = send("SIGKILL")
# A level begins with 6 test batches, then there are 4 batches an epoch and 6 between the stages:
# the first step of the second epoch of each.
IN_SEARCH, IN_FINETUNING = 6 + 4 + 2, 6 + 8 + 6 + 4 + 2


@pytest.fixture(autouse=True)
def plain_picture(monkeypatch):
    """Drawing takes as long as training here, and is tested elsewhere."""
    monkeypatch.setattr(record, "draw_run", lambda run: (run / "curves.png").touch())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), *FLAGS)


def same(undisturbed, again):
    """The run ended as if nothing had happened, and left nothing over."""
    assert hashes(again.folder) == hashes(undisturbed.folder)
    assert metrics(again.folder) == metrics(undisturbed.folder)
    assert files(again.folder) == files(undisturbed.folder)
    assert again.result["rows"] == undisturbed.result["rows"]
    return True


MOMENTS = {
    "in the search": (PromptedClassifier, "forward", IN_SEARCH, False),
    "between the record and the state of a search epoch": (Level, "save", 2, False),
    "after the search, before its end is saved": (Level, "save_search", 1, False),
    "after the search, before its states are removed": (States, "remove_all", 1, False),
    "before fine-tuning": (Level, "save_search", 1, True),
    "in fine-tuning": (PromptedClassifier, "forward", IN_FINETUNING, False),
    "after a state of fine-tuning": (Level, "save", 3, True),
    "while a state is written": (os, "replace", 12, False),
    "between the model's side-car and the model": (os, "replace", 15, True),
    "after the model, before its states are removed": (States, "remove_all", 2, False),
    "after the level, before the table": (Run, "write_results", 1, False),
    "after the table, before the picture": (Run, "write_results", 1, True),
    "before run.json says done": (Run, "state", 2, False),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_ends_in_the_same_bytes(undisturbed, tmp_path, moment):
    save_dir, (owner, name, number, after) = tmp_path / "run", MOMENTS[moment]
    killed = forked(
        save_dir, *FLAGS, before=lambda: at_call(owner, name, number, KILL, after)
    )
    assert killed.code == -signal.SIGKILL
    assert same(undisturbed, run(save_dir, *FLAGS))


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(undisturbed, tmp_path):
    save_dir = tmp_path / "run"
    for number in (12, 10, 16):
        hook = (PromptedClassifier, "forward", number, KILL, False)
        killed = forked(save_dir, *FLAGS, before=lambda hook=hook: at_call(*hook))
        assert killed.code == -signal.SIGKILL
    assert same(undisturbed, run(save_dir, *FLAGS))


def test_run_killed_between_levels_does_not_repeat_the_first(tmp_path):
    words = [*FLAGS, "--density_list", "0.2,0.1"]
    forked(tmp_path / "killed", *words, before=lambda: at_call(Level, "begin", 2, KILL, False))
    model = only_run(tmp_path / "killed") / "d0.2/model.safetensors"
    before = model.stat().st_mtime_ns
    again = run(tmp_path / "killed", *words)
    assert model.stat().st_mtime_ns == before and "density 0.2" not in again.out
    assert same(run(tmp_path / "whole", *words), again)


# Other methods and stages

CHAINS = {
    "LTH, in its second round": (["--prune_method", "lth", "--density_list", "0.7,0.6"], 3),
    "OMP, in its dense phase": (["--prune_method", "omp"], 1),
    "BiP": (["--prune_method", "bip"], 1),
    "the prompt after fine-tuning": (["--post_prompt", "finetuned"], 5),
    "the prompt instead of fine-tuning": (["--post_prompt", "zeroshot"], 3),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_other_methods_and_stages_end_in_the_same_bytes(tmp_path, chain):
    words, saves = CHAINS[chain]
    words = [*FLAGS, *words]
    hook = (Level, "save", saves, KILL, True)
    killed = forked(tmp_path / "killed", *words, before=lambda: at_call(*hook))
    assert killed.code == -signal.SIGKILL
    assert same(run(tmp_path / "whole", *words), run(tmp_path / "killed", *words))


def test_phase_shared_by_levels_keeps_its_place_in_the_record(tmp_path):
    words = [*FLAGS, "--prune_method", "omp"]
    for hook in ((Level, "save_search", 1, KILL, False), (Level, "save", 1, KILL, True)):
        forked(tmp_path / "killed", *words, before=lambda hook=hook: at_call(*hook))
    assert same(run(tmp_path / "whole", *words), run(tmp_path / "killed", *words))


# Processes of their own


def wait_for(condition, process):
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("the moment did not come")


def started(save_dir, words, rows):
    """A real process that has recorded so many epochs."""
    process = start(*SMALL, "--save_dir", save_dir, *words)
    path = "*/*/seed*/metrics.jsonl"

    def far_enough():
        return any(p.read_text().count("\n") >= rows for p in save_dir.glob(path))

    wait_for(far_enough, process)
    return process


def test_killed_process_goes_on_in_another_to_the_same_bytes(tmp_path):
    words = ["--density_list", "0.1", "--epochs", 5, "--eval_every", 0]
    process = started(tmp_path / "killed", words, rows=7)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = run(tmp_path / "killed", *words)
    assert "continuing finetune" in again.out
    assert same(run(tmp_path / "whole", *words), again)


def test_terminated_process_exits_with_75(tmp_path):
    process = started(tmp_path, ["--density_list", "0.1", "--epochs", 200], rows=1)
    process.terminate()
    done = finish(process)
    assert done.code == 75
    assert done.error == "stopped by SIGTERM; the same command continues from here"


# Signals


def stop_in(save_dir, name, number):
    hook = (PromptedClassifier, "forward", number, send(name), False)
    return forked(save_dir, *FLAGS, before=lambda: at_call(*hook))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signal_saves_the_step_and_exits_with_75(tmp_path, name):
    stopped = stop_in(tmp_path / "run", name, IN_SEARCH)
    assert stopped.code == 75
    assert stopped.error == f"stopped by {name}; the same command continues from here"
    state = json.loads((only_run(tmp_path / "run") / "run.json").read_text())
    assert state["state"] == "interrupted" and name in state["reason"]


@pytest.mark.parametrize(
    ("stage", "number"), [("search", IN_SEARCH), ("finetune", IN_FINETUNING)]
)
def test_stopped_run_goes_on_at_its_step(undisturbed, tmp_path, stage, number):
    stop_in(tmp_path / "run", "SIGTERM", number)
    again = run(tmp_path / "run", *FLAGS)
    assert f"density 0.1: continuing {stage} after step 1 of epoch 2" in again.out
    assert same(undisturbed, again)


def test_signal_between_stages_stops_at_once(undisturbed, tmp_path):
    assert stop_in(tmp_path / "run", "SIGTERM", 3).code == 75
    assert same(undisturbed, run(tmp_path / "run", *FLAGS))


def test_signal_while_a_state_is_read_is_no_damage(undisturbed, tmp_path, monkeypatch):
    stop_in(tmp_path / "run", "SIGTERM", IN_FINETUNING)
    hook = (torch, "load", 1, send("SIGTERM"), False)
    again = forked(tmp_path / "run", *FLAGS, before=lambda: at_call(*hook))
    assert again.code == 75 and "going back" not in again.out
    assert same(undisturbed, run(tmp_path / "run", *FLAGS))


# Other settings on the way


def test_other_workers_go_on_to_the_same_bytes(undisturbed, tmp_path):
    stop_in(tmp_path / "run", "SIGTERM", IN_FINETUNING)
    assert same(undisturbed, run(tmp_path / "run", *FLAGS, "--workers", 2))


def run_elsewhere(save_dir, **environment):
    """Repeat a finished run that was made in another environment."""
    words = ["--density_list", "0.1", "--epochs", 0]
    path = run(save_dir, *words).folder / "env.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | environment))
    return run(save_dir, *words)


def test_number_of_threads_is_kept(tmp_path):
    again = run_elsewhere(tmp_path, threads=2)
    assert "note: 2 threads as before instead of 1" in again.out
    assert torch.get_num_threads() == 2


def test_other_versions_are_noted(tmp_path):
    again = run_elsewhere(tmp_path, torch="1.0")
    assert f"no longer bit-identical, changed: torch 1.0 -> {torch.__version__}" in again.out


# Damage


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damaged_newest_state_falls_back_and_says_so(undisturbed, tmp_path):
    save_dir = tmp_path / "run"
    forked(save_dir, *FLAGS, before=lambda: at_call(Level, "save", 4, KILL, True))
    older, newest = sorted(only_run(save_dir).glob("d0.1/state-*.pt"))
    flip_a_bit(newest)
    again = run(save_dir, *FLAGS)
    assert f"checksum mismatch: {newest}" in again.out
    assert "going back to the state before it" in again.out
    assert "continuing finetune after epoch 1" in again.out
    assert same(undisturbed, again)


def test_when_all_states_are_damaged_the_stage_starts_again(undisturbed, tmp_path):
    save_dir = tmp_path / "run"
    forked(save_dir, *FLAGS, before=lambda: at_call(Level, "save", 4, KILL, True))
    for state in only_run(save_dir).glob("d0.1/state-*.pt"):
        state.write_bytes(b"")
    assert same(undisturbed, run(save_dir, *FLAGS))


def test_damaged_end_of_the_search_repeats_the_search(undisturbed, tmp_path):
    save_dir = tmp_path / "run"
    forked(save_dir, *FLAGS, before=lambda: at_call(Level, "save", 3, KILL, True))
    flip_a_bit(only_run(save_dir) / "d0.1/search.safetensors")
    again = run(save_dir, *FLAGS)
    assert "the search is made again" in again.out
    assert same(undisturbed, again)


@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: path.write_bytes(b"")])
def test_damaged_model_is_made_again_and_kept_aside(undisturbed, tmp_path, damage):
    folder = run(tmp_path, *FLAGS).folder
    damage(folder / "d0.1/model.safetensors")
    again = run(tmp_path, *FLAGS)
    assert "this level is made again" in again.out
    (folder / "d0.1/model.damaged").unlink()
    assert same(undisturbed, again)


# Which folder


def test_resume_none_keeps_the_old_folder_under_another_name(tmp_path):
    words = ["--density_list", "0.1"]
    first = run(tmp_path, *words)
    before = hashes(first.folder)
    second = run(tmp_path, *words, "--resume", "none")
    aside = first.folder.with_name(f"{first.folder.name}.old1")
    assert f"note: the earlier run is now {aside}" in second.out
    assert second.folder == first.folder and hashes(second.folder) == before == hashes(aside)


def test_resume_none_twice_keeps_both(tmp_path):
    words = ["--prune_method", "dense", "--epochs", 0]
    for _ in range(3):
        folder = run(tmp_path, *words, "--resume", "none").folder
    ends = sorted(path.name.removeprefix(folder.name) for path in folder.parent.iterdir())
    assert ends == ["", ".old1", ".old2"]


def test_resume_path_goes_on_in_that_folder(undisturbed, tmp_path):
    stop_in(tmp_path / "run", "SIGTERM", IN_FINETUNING)
    moved = tmp_path / "moved"
    only_run(tmp_path / "run").rename(moved)
    again = run(tmp_path / "elsewhere", *FLAGS, "--resume", moved)
    assert again.folder == moved and same(undisturbed, again)


def test_resume_path_takes_a_state_of_the_run(undisturbed, tmp_path):
    stop_in(tmp_path / "run", "SIGTERM", IN_SEARCH)
    folder = only_run(tmp_path / "run")
    (newest,) = folder.glob("d0.1/state-2.pt")
    assert same(undisturbed, run(tmp_path / "elsewhere", *FLAGS, "--resume", newest))


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--weight_lr", 0.5], "weight_lr 0.01 -> 0.5"),
        (["--seed", 8], "seed 7 -> 8"),
        (["--seed", 8, "--epochs", 3], "seed 7 -> 8, epochs 2 -> 3"),
        (["--prune_method", "hydra", "--prune_mode", "score+vp_weight+vp"],
         "prune_method vpns -> hydra"),
    ],
)  # fmt: skip
def test_resume_path_with_other_hyper_parameters_is_refused(undisturbed, tmp_path, words,
                                                            difference):
    done = run(tmp_path, *FLAGS, *words, "--resume", undisturbed.folder)
    assert done.code == 2
    assert done.error == f"{undisturbed.folder} ran with other hyper-parameters: {difference}"


def test_resume_path_without_a_run_is_refused(tmp_path):
    done = run(tmp_path, "--resume", tmp_path / "nothing")
    assert done.code == 1 and "no run folder there" in done.error


def test_other_hyper_parameters_make_another_folder_and_name_the_nearest(tmp_path):
    first = run(tmp_path, "--density_list", "0.1", "--epochs", 0)
    second = run(tmp_path, "--density_list", "0.1", "--epochs", 0, "--weight_lr", 0.5)
    assert first.folder != second.folder and first.folder.parent == second.folder.parent
    assert (
        f"note: a new run; the nearest one, {first.folder.name}, differs in: "
        "weight_lr 0.01 -> 0.5" in second.out
    )


def test_flags_that_change_no_number_keep_the_folder(tmp_path):
    words = ["--density_list", "0.1", "--epochs", 0]
    first = run(tmp_path, *words)
    second = run(tmp_path, *words, "--workers", 2, "--print_freq", 5, "--eval_every", 0)
    assert second.folder == first.folder and len(second.out.splitlines()) == 1


# Two at once


@pytest.fixture
def holder(tmp_path):
    """A fork that waits in its run, and its process number."""
    def wait_there():
        at_call(Level, "save", 1, signal.pause, False)
        (tmp_path / "pid").write_text(str(os.getpid()))

    wait = fork(tmp_path / "run", *FLAGS, before=wait_there)
    while not list((tmp_path / "run").glob("*/*/*/metrics.jsonl")):
        time.sleep(0.01)
    number = int((tmp_path / "pid").read_text())
    yield number
    os.kill(number, signal.SIGKILL)
    wait()


def test_second_process_on_a_folder_is_refused_with_the_holder(tmp_path, holder):
    done = run(tmp_path / "run", *FLAGS)
    assert done.code == 1
    assert f"is in use by process {holder} on {platform.node()}" in done.error


def test_a_folder_in_use_is_not_set_aside(tmp_path, holder):
    done = run(tmp_path / "run", *FLAGS, "--resume", "none")
    assert done.code == 1 and f"process {holder}" in done.error
    assert only_run(tmp_path / "run")


def test_run_does_not_go_on_with_other_images(tmp_path):
    done = run(tmp_path, *QUICK)
    path = done.folder / "env.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["data"], "0" * 16))
    (done.folder / "d0.1" / "model.safetensors").unlink()
    again = run(tmp_path, *QUICK)
    assert again.code == 4 and "the images are not those" in again.error
