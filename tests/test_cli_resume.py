"""Runs that are killed, stopped or damaged, and the same command again."""

import functools
import itertools
import json
import os
import platform
import re
import signal
import time
from random import Random

import pytest
import torch
from cli import (
    SMALL,
    at_call,
    files,
    fork,
    forked,
    hashes,
    metrics,
    only_run,
    plain_pictures,
    run,
    send,
    start,
    wait_for,
)
from safetensors.torch import save_file

import program.model
from models.backbones import build_network
from models.classifier import PromptedClassifier
from program import record
from pruning import training
from runfolder import shared, stage_log
from runfolder.level import Level
from runfolder.run import Run
from runfolder.stage_log import Pace, StageLog
from runfolder.states import States
from utils import tensors
from utils.signals import SIGNALS

QUICK = ["--epochs", 2, "--eval_every", 0, "--input_size", 4, "--output_size", 4]
FLAGS = ["--density_list", "0.1", *QUICK]
KILL = send("SIGKILL")
# A level begins with the test images, in 2 batches, then there are 4 batches an epoch and the test
# images between the stages: the first step of the second epoch of each.
TESTED = 2
IN_SEARCH, IN_FINETUNING = TESTED + 4 + 2, TESTED + 8 + TESTED + 4 + 2


@pytest.fixture(autouse=True)
def plain_picture(monkeypatch):
    """Drawing takes as long as training here, and is tested elsewhere."""
    monkeypatch.setattr(record, "draw_run", plain_pictures)


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
    "between the record and the state of a search epoch": (StageLog, "save", 2, False),
    "after the search, before its end is saved": (Level, "save_search", 1, False),
    "after the search, before its states are removed": (States, "remove_all", 1, False),
    "before fine-tuning": (Level, "save_search", 1, True),
    "in fine-tuning": (PromptedClassifier, "forward", IN_FINETUNING, False),
    "after a state of fine-tuning": (StageLog, "save", 3, True),
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
    for number in (IN_SEARCH, TESTED + 4, TESTED + 4 + TESTED):
        hook = (PromptedClassifier, "forward", number, KILL, False)
        killed = forked(save_dir, *FLAGS, before=lambda hook=hook: at_call(*hook))
        assert killed.code == -signal.SIGKILL
    assert same(undisturbed, run(save_dir, *FLAGS))


def kill_in(stage, number):
    """SIGKILL at the begin of so many half-steps of a stage."""
    plain, seen = training.half_step, []

    def half_step(stage_training, *args):
        seen.extend([1] * (stage_training.stage.name == stage))
        if len(seen) == number:
            KILL()
        plain(stage_training, *args)

    training.half_step = half_step


def killed_in(stage, numbers, save_dir, words):
    """The run that ends after kills in a stage, and what all of them printed."""
    printed = []
    for number in numbers:
        killed = forked(save_dir, *words, before=lambda number=number: kill_in(stage, number))
        assert killed.code == -signal.SIGKILL
        printed.append(killed.out)
    again = run(save_dir, *words)
    return again, [line for out in (*printed, again.out) for line in out.splitlines()]


def epochs_of(stage, lines):
    """The epochs of a stage that were trained to their end, in order."""
    wanted = re.compile(rf" {re.escape(stage)} epoch (\d+) of \d+: \w+ loss")
    found = map(wanted.search, lines)
    return [int(match[1]) for match in found if match]


@pytest.mark.parametrize("stage", ["search", "finetune"])
def test_run_survives_kills_in_a_stage_without_repeating_an_epoch(undisturbed, tmp_path, stage):
    again, lines = killed_in(stage, (2, 7, 3), tmp_path / "run", FLAGS)
    assert same(undisturbed, again) and epochs_of(stage, lines) == [1, 2]


def test_a_search_for_channels_survives_kills(tmp_path):
    words = ["--density_list", "0.5", "--granularity", "channel", *QUICK]
    again, lines = killed_in("search", (2, 7), tmp_path / "run", words)
    assert same(run(tmp_path / "calm", *words), again) and epochs_of("search", lines) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("search", []),
        ("search", ["--prune_method", "bip"]),
        ("dense", ["--prune_method", "omp"]),
        ("round-0.8", ["--prune_method", "lth", "--density_list", "0.64"]),
        ("finetune", []),
        ("finetune", ["--val_fraction", 0.1]),
        ("post_prompt", ["--post_prompt", "finetuned"]),
    ],
)
def test_run_survives_twenty_random_kills_in_a_stage(tmp_path, stage, words):
    """A kill costs at most the epoch that it falls in: 20 of them, at most 20 epochs later."""
    words = [*FLAGS, *words, "--epochs", 21]
    whole = run(tmp_path / "whole", *words)
    half_steps = 2 if "--prune_method" in words and "bip" not in words else 4
    draw = Random(7)
    numbers = [draw.randint(1, 2 * half_steps) for _ in range(20)]
    again, lines = killed_in(stage, numbers, tmp_path / "run", words)
    assert same(whole, again) and epochs_of(stage, lines) == [*range(1, 22)]


def test_run_killed_between_levels_does_not_repeat_the_first(tmp_path):
    words = [*FLAGS, "--density_list", "0.2,0.1"]
    forked(tmp_path / "killed", *words, before=lambda: at_call(StageLog, "begin", 2, KILL, False))
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
    hook = (StageLog, "save", saves, KILL, True)
    killed = forked(tmp_path / "killed", *words, before=lambda: at_call(*hook))
    assert killed.code == -signal.SIGKILL
    assert same(run(tmp_path / "whole", *words), run(tmp_path / "killed", *words))


def test_phase_shared_by_levels_keeps_its_place_in_the_record(tmp_path):
    words = [*FLAGS, "--prune_method", "omp"]
    for hook in ((Level, "save_search", 1, KILL, False), (StageLog, "save", 1, KILL, True)):
        forked(tmp_path / "killed", *words, before=lambda hook=hook: at_call(*hook))
    assert same(run(tmp_path / "whole", *words), run(tmp_path / "killed", *words))


# How often a state is written

PACES = {
    "every second epoch": ["--save_every", 2],
    "after every step": ["--save_minutes", 1e-9],
}


@pytest.mark.parametrize("pace", PACES)
def test_pace_of_the_states_changes_neither_folder_nor_bytes(undisturbed, tmp_path, pace):
    again = run(tmp_path, *FLAGS, *PACES[pace])
    assert same(undisturbed, again) and again.folder.name == undisturbed.folder.name


def states_of(save_dir):
    """Epoch and step that come next in the states of the only run, oldest first."""
    paths = sorted(only_run(save_dir).glob("d*/state-*.pt"))
    states = [torch.load(path, weights_only=True) for path in paths]
    return [(path.stem, state["epoch"], state["step"])
            for path, state in zip(paths, states, strict=True)]


DENSE = ["--prune_method", "dense", "--eval_every", 0, "--keep_states"]


def test_a_state_is_written_every_so_many_epochs_and_at_the_end(tmp_path):
    run(tmp_path, *DENSE, "--epochs", 5, "--save_every", 2)
    assert states_of(tmp_path) == [("state-2", 4, 0), ("state-3", 5, 0)]  # the first had 2, 0


STATES = {
    "vpns": ["search-2", "search-3", "state-2", "state-3"],
    "bip": ["search-2", "search-3"],  # there is no fine-tuning
    "dense": ["state-2", "state-3"],  # there is no search
}


@pytest.mark.parametrize("method", STATES)
def test_states_that_are_kept_are_the_newest_two_of_each_phase(tmp_path, method):
    words = ["--prune_method", method, "--density_list", "0.1", "--epochs", 3, "--keep_states"]
    done = run(tmp_path, *words)
    assert sorted(path.stem for path in done.folder.glob("d*/*-*.pt")) == STATES[method]
    assert run(tmp_path, *words).code == 0
    assert sorted(path.stem for path in done.folder.glob("d*/*-*.pt")) == STATES[method]


def test_no_state_is_written_within_the_first_minutes_by_default(tmp_path, monkeypatch):
    """The last epoch of a stage has one, from which the next phase may start again."""
    written = []
    monkeypatch.setattr(States, "save", lambda self, state: written.append(state["epoch"]))
    run(tmp_path, "--density_list", "0.1", "--epochs", 3, "--save_every", 0)
    assert written == [3, 3]


def test_states_in_the_middle_of_an_epoch_are_written_by_the_clock(tmp_path):
    run(tmp_path, *DENSE, "--save_minutes", 1e-9)
    assert states_of(tmp_path) == [("state-2", 0, 2), ("state-3", 1, 0)]  # the first had 0, 1


def test_minutes_count_from_the_last_state_of_the_run(tmp_path, monkeypatch):
    """Each look at the clock finds it 20 s later: of four steps only the third is late."""
    ticks = itertools.count(0, 20)
    monkeypatch.setattr(stage_log, "Pace", functools.partial(Pace, clock=lambda: next(ticks)))
    run(tmp_path, *DENSE, "--batch_size", 30, "--save_minutes", 1)
    assert states_of(tmp_path) == [("state-1", 0, 3), ("state-2", 1, 0)]


def test_kill_costs_a_step_when_a_state_follows_every_step(undisturbed, tmp_path):
    words = [*FLAGS, "--save_minutes", 1e-9]
    hook = (PromptedClassifier, "forward", IN_SEARCH + 1, KILL, False)
    forked(tmp_path, *words, before=lambda: at_call(*hook))
    again = run(tmp_path, *words)
    assert "continuing search after step 1 of epoch 2" in again.out and same(undisturbed, again)


def test_the_pace_may_change_on_the_way(undisturbed, tmp_path):
    hook = (PromptedClassifier, "forward", IN_FINETUNING, KILL, False)
    forked(tmp_path, *FLAGS, "--save_every", 9, before=lambda: at_call(*hook))
    assert same(undisturbed, run(tmp_path, *FLAGS))


BORDERS = {
    "in the search, after it": ("search", 11, [], "continuing search after epoch 2"),
    "in fine-tuning, before its first state": ("finetune", 6, [], ""),
    "at the end of fine-tuning": ("post_prompt", 1, ["--post_prompt", "finetuned"],
                                  "continuing finetune after epoch 3"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Makes a run that nothing disturbs, once for the same words."""
    return functools.cache(lambda *words: run(tmp_path_factory.mktemp("whole"), *words))


@pytest.mark.parametrize("border", BORDERS)
def test_rare_states_lose_nothing_but_epochs(tmp_path, whole_run, border):
    stage, number, words, continued = BORDERS[border]
    words = [*FLAGS, "--epochs", 3, "--save_every", 2, *words]
    again, _ = killed_in(stage, [number], tmp_path / "killed", words)
    assert same(whole_run(*words), again)
    assert [line for line in again.out.splitlines() if "continuing" in line] == (
        [f"density 0.1: {continued}"] if continued else []
    )


@pytest.mark.parametrize("number", [1, 2])
def test_killed_while_a_shared_file_is_written_leaves_no_part_of_it(tmp_path, number):
    words = [*FLAGS, "--prune_method", "omp", "--epochs", 1]

    def kill_in_shared():
        at_call(shared, "save_model", 1, lambda: at_call(os, "replace", number, KILL, False), False)

    killed = forked(tmp_path / "killed", *words, before=kill_in_shared)
    assert killed.code == -signal.SIGKILL
    again = run(tmp_path / "killed", *words)
    whole = run(tmp_path / "whole", *words)
    assert same(whole, again)
    assert files(again.folder.parents[1] / "shared") == files(whole.folder.parents[1] / "shared")


# Processes of their own


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


# Signals


def stop_in(save_dir, name, number):
    hook = (PromptedClassifier, "forward", number, send(name), False)
    return forked(save_dir, *FLAGS, before=lambda: at_call(*hook))


@pytest.mark.parametrize("name", SIGNALS)
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
    assert stop_in(tmp_path / "run", "SIGTERM", TESTED).code == 75
    assert same(undisturbed, run(tmp_path / "run", *FLAGS))


def test_signal_while_a_state_is_read_is_no_damage(undisturbed, tmp_path, monkeypatch):
    stop_in(tmp_path / "run", "SIGTERM", IN_FINETUNING)
    hook = (tensors, "read_torch", 1, send("SIGTERM"), False)
    again = forked(tmp_path / "run", *FLAGS, before=lambda: at_call(*hook))
    assert again.code == 75 and "going back" not in again.out
    assert same(undisturbed, run(tmp_path / "run", *FLAGS))


def test_signal_while_an_epoch_is_measured_does_not_cost_the_epoch(undisturbed, tmp_path):
    words = [*FLAGS, "--eval_every", 1]
    hook = (PromptedClassifier, "forward", TESTED + 4 + 1, send("SIGTERM"), False)
    stopped = forked(tmp_path, *words, before=lambda: at_call(*hook))
    again = run(tmp_path, *words)
    assert stopped.code == 75 and "continuing search after step 2 of epoch 1" in again.out
    assert same(undisturbed, again)


def test_signal_while_labels_are_mapped_costs_no_epoch(tmp_path):
    words = [*FLAGS, "--label_mapping_mode", "ilm", "--epochs", 3, "--save_every", 3]
    # The mapping is made twice before the search, then before each epoch.
    hook = (program.model, "count_predictions", 5, send("SIGTERM"), False)
    stopped = forked(tmp_path / "run", *words, before=lambda: at_call(*hook))
    again = run(tmp_path / "run", *words)
    assert stopped.code == 75 and "continuing search after epoch 2" in again.out
    assert same(run(tmp_path / "whole", *words), again)


def stop_twice(save_dir, second):
    """SIGTERM in a step of the second epoch of the search; `second` while its state is written."""

    def arm():
        at_call(PromptedClassifier, "forward", IN_SEARCH, send("SIGTERM"), False)
        in_save = lambda: at_call(os, *second)  # noqa: E731
        at_call(States, "save", 2, in_save, False)

    return forked(save_dir, *FLAGS, before=arm)


def test_second_signal_during_the_save_changes_nothing(undisturbed, tmp_path):
    stopped = stop_twice(tmp_path, ("fsync", 3, send("SIGINT"), False))
    assert stopped.code == 75
    assert stopped.error == "stopped by SIGINT; the same command continues from here"
    assert states_of(tmp_path) == [("state-1", 1, 0), ("state-2", 1, 1)]
    assert same(undisturbed, run(tmp_path, *FLAGS))


# A state's data is flushed; its side-car is flushed and renamed, then the data is renamed; each
# rename is followed by a flush of the folder.
CRASHES = [("fsync", 1), ("fsync", 3), ("replace", 2), ("fsync", 4)]


@pytest.mark.parametrize(("name", "number"), CRASHES)
def test_kill_during_the_save_leaves_the_state_before(undisturbed, tmp_path, name, number):
    killed = stop_twice(tmp_path, (name, number, KILL, False))
    assert killed.code == -signal.SIGKILL
    found, problems = States(only_run(tmp_path) / "d0.1").newest()
    written = (name, number) == ("fsync", 4)  # only the folder had still to be flushed
    assert (found["epoch"], found["step"], problems) == (1, int(written), [])
    assert same(undisturbed, run(tmp_path, *FLAGS))


# Other settings on the way


def test_other_workers_go_on_to_the_same_bytes(undisturbed, tmp_path):
    stop_in(tmp_path / "run", "SIGTERM", IN_FINETUNING)
    assert same(undisturbed, run(tmp_path / "run", *FLAGS, "--workers", 2))


def run_elsewhere(save_dir, **environment):
    """Repeat a finished run that was made in another environment."""
    words = ["--density_list", "0.1", "--epochs", 0]
    path = run(save_dir, *words).folder / "env.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | environment))
    # A fork: threads that this process had started would be missing in its later forks.
    return forked(save_dir, *words, before=lambda: None)


def test_number_of_threads_is_kept(tmp_path):
    again = run_elsewhere(tmp_path, threads=2)
    assert again.code == 0 and "note: 2 threads as before instead of 1" in again.out


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
    forked(save_dir, *FLAGS, before=lambda: at_call(StageLog, "save", 4, KILL, True))
    older, newest = sorted(only_run(save_dir).glob("d0.1/state-*.pt"))
    flip_a_bit(newest)
    again = run(save_dir, *FLAGS)
    assert f"checksum mismatch: {newest}" in again.out
    assert "going back to the state before it" in again.out
    assert "continuing finetune after epoch 1" in again.out
    assert same(undisturbed, again)


def test_when_all_states_are_damaged_the_stage_starts_again(undisturbed, tmp_path):
    save_dir = tmp_path / "run"
    forked(save_dir, *FLAGS, before=lambda: at_call(StageLog, "save", 4, KILL, True))
    for state in only_run(save_dir).glob("d0.1/state-*.pt"):
        state.write_bytes(b"")
    assert same(undisturbed, run(save_dir, *FLAGS))


def test_damaged_end_of_the_search_repeats_the_search(undisturbed, tmp_path):
    save_dir = tmp_path / "run"
    forked(save_dir, *FLAGS, before=lambda: at_call(StageLog, "save", 3, KILL, True))
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
    assert done.code == 2 and "no run folder there" in done.error


def test_misspelt_resume_names_the_nearest_word(tmp_path):
    assert "did you mean 'auto'?" in run(tmp_path, "--resume", "atuo").error


def test_resume_path_of_a_state_that_is_not_there_is_refused(tmp_path):
    stop_in(tmp_path / "run", "SIGTERM", IN_SEARCH)
    missing = only_run(tmp_path / "run") / "d0.1/state-99.pt"
    done = run(tmp_path / "elsewhere", *FLAGS, "--resume", missing)
    assert done.code == 1 and done.error == f"{missing} does not exist"


def test_resume_path_of_a_state_that_the_run_is_beyond_is_refused(tmp_path):
    stop_in(tmp_path / "run", "SIGTERM", IN_SEARCH)
    older = only_run(tmp_path / "run") / "d0.1/state-1.pt"
    done = run(tmp_path / "elsewhere", *FLAGS, "--resume", older)
    assert done.code == 2 and f"{older} is not where" in done.error
    assert done.error.endswith("which has d0.1/state-2.pt")


def test_resume_folder_with_a_damaged_newest_state_is_refused_by_name(tmp_path):
    stop_in(tmp_path / "run", "SIGTERM", IN_SEARCH)
    newest = only_run(tmp_path / "run") / "d0.1/state-2.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    done = run(tmp_path / "elsewhere", *FLAGS, "--resume", only_run(tmp_path / "run"))
    assert done.code == 1 and str(newest) in done.error and newest.exists()


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
    assert second.folder == first.folder and second.out.startswith("note: this run is done")


# Two at once


@pytest.fixture
def holder(tmp_path):
    """A fork that waits in its run, and its process number."""
    def wait_there():
        at_call(StageLog, "save", 1, signal.pause, False)
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


def test_weights_file_with_other_content_makes_another_run(tmp_path):
    def folder_of(seed):
        save_file(build_network("resnet20", "none", seed=seed).state_dict(), weights)
        return run(tmp_path / "run", *FLAGS, "--epochs", 0, "--weights", weights).folder

    weights = tmp_path / "mine.safetensors"
    first, other = folder_of(1), folder_of(2)
    assert first != other and folder_of(1) == first


def test_damaged_environment_is_noted_and_the_state_tells_the_threads(undisturbed, tmp_path):
    stop_in(tmp_path / "run", "SIGTERM", IN_SEARCH)
    folder = only_run(tmp_path / "run")
    (folder / "env.json").write_text('{"bro')
    again = forked(tmp_path / "run", *FLAGS, before=lambda: torch.set_num_threads(2))
    assert "note: env.json is missing or damaged: written anew" in again.out
    assert "note: 1 threads as before instead of 2" in again.out
    assert hashes(folder) == hashes(undisturbed.folder)


def test_lost_rows_of_the_curves_are_noted(undisturbed, tmp_path):
    stop_in(tmp_path / "run", "SIGTERM", IN_FINETUNING)
    (only_run(tmp_path / "run") / "metrics.jsonl").write_bytes(b"\xff" * 300)
    again = run(tmp_path / "run", *FLAGS)
    note = "note: metrics.jsonl is damaged: 3 of 3 epochs of density 0.1 are missing in the curves"
    assert note in again.out and hashes(again.folder) == hashes(undisturbed.folder)
