"""Several processes under torchrun: the same run as one, one writer, one end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import ranks
import torch
import torch.nn.functional as F
from cli import ROOT, SMALL, Done, at_call, call, files, hashes, only_run, wait_for
from cli import run as alone
from conftest import CLASSES, TinyView, tiny_model
from test_data_folders import tree
from test_families import OWN

from data import cache as data_cache
from data import decoding, opening
from pruning.measure import Counts, evaluate, hits
from pruning.scores import LearnedScores
from runfolder.run import Run
from runfolder.states import States
from utils import together
from utils.errors import DataError, NumericError
from utils.ranks import rank, share, world
from utils.signals import Stop

WORDS = ("--density_list", "0.2", "--epochs", "2")


def rows(folder: Path) -> list[dict]:
    """The epochs in metrics.jsonl, without their seconds."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run of two processes that nothing has happened to."""
    save_dir = tmp_path_factory.mktemp("two") / "runs"
    done = ranks.run(save_dir, 2, *WORDS)
    assert [d.code for d in done] == [0, 0], done
    return done[0].folder


def ended(done: list[Done]) -> list[int]:
    return [one.code for one in done]


# What the processes do together


def test_alone_nothing_is_exchanged():
    tensor = torch.ones(2)
    assert (rank(), world(), share("abc")) == (0, 1, "abc")
    assert together.total(tensor) is tensor and together.least(7) == 7
    assert together.from_first(lambda: 3) == together.one_first(lambda: 3) == 3
    assert together.Agreement()(True, False) == (True, False)
    together.require_same({"x": tensor}, "here")


@pytest.mark.parametrize("images", [16, 15, 4])
def test_gradients_of_shares_are_those_of_the_whole_batch(tmp_path, images):
    torch.manual_seed(0)
    x, y = torch.rand(images, 3, 8, 8), torch.randint(0, CLASSES, (images,))

    def step(of: slice) -> tuple:
        model = tiny_model().eval()  # BatchNorm would see its share alone
        logits = model(x[of], prompted=True)
        loss = F.cross_entropy(logits, y[of])
        loss.backward()
        params = list(model.parameters())
        numbers = together.whole_batch(params, loss, hits(logits, y[of]), len(y[of]))
        return [p.grad for p in params], [float(number) for number in numbers]

    grads, numbers = step(slice(None))
    for got, told in ranks.results(tmp_path, 3, lambda r: step(slice(r, None, 3))):
        assert told == pytest.approx(numbers, rel=1e-6)
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(got, grads, strict=True))


def test_what_the_first_makes_the_others_get_and_make_not(tmp_path):
    made = ranks.results(tmp_path, 2, lambda r: together.from_first(lambda: (r, torch.ones(2))))
    assert [number for number, _ in made] == [0, 0] and torch.equal(made[1][1], torch.ones(2))


def test_what_one_process_makes_may_take_longer_than_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "PATIENCE", together.timedelta(seconds=1))

    def slow(number: int) -> tuple:
        made = together.from_first(lambda: time.sleep(2.5) or number)
        return made, together.one_first(lambda: time.sleep(0 if number else 1.5) or number)

    assert ranks.results(tmp_path, 2, slow) == [(0, 0), (0, 1)]


def test_a_request_of_one_is_seen_by_all_at_the_same_call(tmp_path):
    def calls(number: int) -> list:
        agree = together.Agreement()
        return [agree(number == 1 and step == 3, step == 5) for step in range(8)]

    first, second = ranks.results(tmp_path, 2, calls)
    assert first == second
    assert [stop for stop, _ in first].index(True) == 4 and [due for _, due in first][6]


def test_only_the_first_decides_that_a_state_is_due(tmp_path):
    def calls(number: int) -> list:
        agree = together.Agreement()
        return [agree(False, number == 1) for _ in range(3)]

    assert ranks.results(tmp_path, 2, calls) == [[(False, False)] * 3] * 2


def test_a_state_that_is_due_is_said_once(tmp_path):
    def calls(number: int) -> list:
        agree = together.Agreement()
        return [agree(False, step in (2, 3))[1] for step in range(6)]  # saved after the answer

    assert ranks.results(tmp_path, 2, calls) == [[s == 3 for s in range(6)]] * 2


def test_tensors_that_differ_between_processes_are_named_with_the_place(tmp_path):
    def compare(number: int) -> str:
        tensors = {"same": torch.ones(3), "scores": torch.tensor([1.0, number])}
        with pytest.raises(NumericError) as error:
            together.require_same(tensors, "epoch 4")
        return str(error.value)

    for text in ranks.results(tmp_path, 2, compare):
        assert "differ in scores at epoch 4" in text


def test_evaluation_is_split_and_its_sums_are_exact(tmp_path):
    class Shared(TinyView):
        def batches(self, *key: object, start: int = 0):
            for batch in super().batches(*key, start=start):
                yield tuple(map(share, batch))

    view = Shared("test", images=22)
    counts = evaluate(tiny_model(), view)
    for sums in ranks.results(tmp_path, 2, lambda _: tuple(evaluate(tiny_model(), view))):
        got = Counts(*sums)
        assert got[1:] == counts[1:] and got.loss == pytest.approx(counts.loss)


# The same run


def test_two_processes_end_with_one_result_and_one_voice(whole, tmp_path):
    assert alone(tmp_path, *WORDS, "--dry_run").code == 0
    first, second = (ranks.text_of(whole.parents[2], number) for number in (0, 1))
    out = first.with_name(f"{first.name}.out").read_text()
    assert out.splitlines()[-1].startswith("RESULT ")
    assert second.with_name(f"{second.name}.out").read_text() == ""
    assert second.with_name(f"{second.name}.err").read_text() == ""


def test_two_processes_leave_the_files_of_one(whole, tmp_path):
    assert files(whole) == files(alone(tmp_path, *WORDS).folder)


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_see_the_images_that_one_sees_at_the_same_steps(tmp_path, monkeypatch, count):
    (tmp_path / "own_nets.py").write_text(OWN)  # a network without BatchNorm
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*WORDS, "--network", "own_nets:net", "--label_mapping_mode", "none",
             "--batch_size", 50]  # fmt: skip
    one = alone(tmp_path / "one", *words).folder
    several = ranks.run(tmp_path / "several", count, *words)
    assert ended(several) == [0] * count, several
    pairs = list(zip(rows(one), rows(several[0].folder), strict=True))
    for a, b in pairs:
        assert a["clean_loss"] == pytest.approx(b["clean_loss"], abs=1e-5)
        assert a["prompted_loss"] == pytest.approx(b["prompted_loss"], abs=1e-5)
    assert len(pairs) == 4


@pytest.mark.parametrize("method", [pytest.param("bip", marks=pytest.mark.slow), "grasp", "lth"])
def test_every_kind_of_method_finds_one_mask_in_all_processes(tmp_path, method):
    done = ranks.run(tmp_path / "runs", 2, "--prune_method", method, "--density_list", "0.5")
    assert ended(done) == [0, 0], done
    (row,) = done[0].result["rows"]
    assert row["kept"] == row["prunable"] - int(0.5 * row["prunable"])


def test_a_one_shot_method_scores_the_whole_batch_in_each_process(tmp_path):
    words = ["--prune_method", "snip", "--density_list", "0.2", "--epochs", 0]
    one = alone(tmp_path / "one", *words).folder
    several = ranks.run(tmp_path / "two", 2, *words)[0].folder
    name = "d0.2/model.safetensors"
    assert hashes(one)[name] == hashes(several)[name]


def test_a_random_prompt_is_at_one_place_in_all_processes(tmp_path):
    done = ranks.run(tmp_path / "runs", 2, *WORDS, "--prompt_method", "random", "--mask_size", 3)
    assert ended(done) == [0, 0], done


def test_a_rest_of_fewer_images_than_processes_is_refused(tmp_path):
    done = ranks.run(tmp_path / "runs", 3, *WORDS, "--train_images", 122)
    assert ended(done) == [2, 2, 2]
    assert "has 2 images for 3 processes: choose a --batch_size" in done[0].error
    assert done[1].err == done[2].err == ""


@pytest.fixture
def folders(tmp_path) -> tuple:
    """Class folders of 16 training and 2 test images, as words of a command."""
    names = [f"train/{name}/{i}" for name in "ab" for i in range(8)] + ["test/a/1", "test/b/2"]
    data = tree(tmp_path / "images", *names)
    return (*WORDS, "--dataset", "imagefolder", "--data", data, "--train_images", 0,
            "--batch_size", 4, "--epochs", 1)  # fmt: skip


@pytest.mark.parametrize("cache", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_each_process_decodes_its_share_alone(tmp_path, folders, cache):
    def watch(number: int) -> None:
        plain = decoding.decode

        def decode(path: Path) -> torch.Tensor:
            with open(tmp_path / f"decoded-{number}", "a") as file:
                print(path, file=file)
            return plain(path)

        decoding.decode, data_cache.BATCH = decode, 2

    done = ranks.run(tmp_path / "runs", 2, *folders, "--cache_gb", cache, before=watch)
    assert ended(done) == [0, 0], done
    first, second = ((tmp_path / f"decoded-{n}").read_text().splitlines() for n in (0, 1))
    if cache:  # each image once, in one process
        assert len({*first, *second}) == len(first) + len(second) == 18
    assert abs(len(first) - len(second)) <= 0.25 * len(first)


# One writer


def test_only_the_first_process_opens_files_of_the_run_to_write(tmp_path):
    def watch(number: int) -> None:
        note = os.open(tmp_path / f"written-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def hook(event: str, args: tuple) -> None:
            if event == "open" and isinstance(args[0], str | bytes) and "runs" in str(args[0]):
                flags = args[2] if isinstance(args[2], int) else 0
                if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    os.write(note, f"{args[0]}\n".encode())
            if event in ("os.mkdir", "os.rename", "os.remove") and "runs" in str(args[0]):
                os.write(note, f"{event} {args[0]}\n".encode())

        sys.addaudithook(hook)

    done = ranks.run(tmp_path / "runs", 2, *WORDS, before=watch)
    assert ended(done) == [0, 0], done
    first, second = ((tmp_path / f"written-{n}").read_text() for n in (0, 1))
    assert "state-1.pt" in first and "log.txt" in first and second == ""


# One end


def stop_one(number: int, step: int, name: str, rank: int) -> None:
    """Send the process of rank `number` a signal after a step."""
    if rank == number:
        send = partial(os.kill, os.getpid(), getattr(signal, name))
        at_call(LearnedScores, "renew", step, send, after=True)


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(whole, tmp_path, number):
    save_dir = tmp_path / "runs"
    done = ranks.run(save_dir, 2, *WORDS, before=partial(stop_one, number, 4, "SIGTERM"))
    assert ended(done) == [75, 75], done
    assert "the same command continues" in done[0].error and done[1].err == ""
    assert json.loads((only_run(save_dir) / "run.json").read_text())["state"] == "interrupted"
    assert States(only_run(save_dir) / "d0.2").numbers()
    again = ranks.run(save_dir, 2, *WORDS)
    assert ended(again) == [0, 0] and "continuing search" in again[0].out
    assert hashes(again[0].folder) == hashes(whole) and rows(again[0].folder) == rows(whole)


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on(whole, tmp_path, number):
    save_dir = tmp_path / "runs"
    done = ranks.run(save_dir, 2, *WORDS, before=partial(stop_one, number, 6, "SIGKILL"))
    assert ended(done)[number] == -9 and ended(done)[1 - number] == 1
    assert "a process of this run is gone" in done[1 - number].error
    again = ranks.run(save_dir, 2, *WORDS)
    assert ended(again) == [0, 0] and hashes(again[0].folder) == hashes(whole)


@pytest.mark.parametrize(
    ("before", "now"), [(1, 2), pytest.param(2, 3, marks=pytest.mark.slow)]
)
def test_another_number_of_processes_goes_on_with_a_note(tmp_path, before, now):
    save_dir = tmp_path / "runs"
    ranks.run(save_dir, before, *WORDS, before=partial(stop_one, 0, 4, "SIGTERM"))
    done = ranks.run(save_dir, now, *WORDS)
    assert ended(done) == [0] * now and "continuing search" in done[0].out
    assert f"no longer bit-identical, changed: processes {before} -> {now}" in done[0].out


def test_a_difference_between_the_processes_stops_the_run_and_saves_nothing(tmp_path):
    def differ(number: int) -> None:
        if number == 1:
            plain = LearnedScores.gradients

            def gradients(self, half: int = 0) -> None:
                plain(self, half)
                next(iter(self.scores.values())).grad.flatten()[:9].add_(1e-3)

            LearnedScores.gradients = gradients

    save_dir = tmp_path / "runs"
    done = ranks.run(save_dir, 2, *WORDS, before=differ)
    assert ended(done) == [3, 3]
    assert "the processes differ in scores at density 0.2, stage search, epoch 1" in done[0].error
    assert not States(only_run(save_dir) / "d0.2").numbers()


def test_an_error_of_one_process_is_told_by_the_first(tmp_path, folders):
    def break_one(number: int) -> None:
        if number == 1:
            decoding.decode = lambda path: (_ for _ in ()).throw(DataError(f"{path} is damaged"))

    done = ranks.run(tmp_path / "runs", 2, *folders, "--cache_gb", 0, before=break_one)
    assert ended(done) == [4, 4], done
    assert done[0].error.startswith("process 1: ") and "is damaged" in done[0].error
    assert done[1].err == ""


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--sync_bn"], 2, "--sync_bn is for several GPUs under torchrun: drop it"),
        (["--device", "cuda:1"], 2, "several processes cannot share cuda:1"),
        (["--density_list", "2"], 2, "density"),
    ],
)
def test_what_cannot_work_is_told_once(tmp_path, words, code, reason):
    done = ranks.run(tmp_path / "runs", 2, *WORDS, *words)
    assert ended(done) == [code] * 2 and reason in done[0].error and done[1].err == ""


def test_processes_that_do_not_meet_say_so(tmp_path, monkeypatch):
    for name, value in ranks.environment(1, 2, ranks.free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(together, "PATIENCE", together.timedelta(seconds=1))
    done = alone(tmp_path, *WORDS)
    assert done.code == 1 and "the 2 processes do not meet" in done.error


@pytest.mark.parametrize("flag", ["--check_data", "--dry_run"])
def test_what_prints_all_itself_prints_it_once(tmp_path, folders, flag):
    done = ranks.run(tmp_path / "runs", 2, *folders, flag)
    assert ended(done) == [0, 0] and done[0].out and not done[1].out


def test_images_that_differ_between_machines_are_noticed(tmp_path, folders):
    other = shutil.copytree(tmp_path / "images", tmp_path / "other")
    (other / "train/a/0.png").write_bytes((other / "train/b/3.png").read_bytes())

    def elsewhere(number: int) -> None:
        os.chdir(tmp_path)
        if number == 1:
            opening.DEFAULT_FOLDERS = (str(other),)

    words = [word for word in folders if word not in ("--data", tmp_path / "images")]
    os.symlink(tmp_path / "images", tmp_path / "dataset")
    done = ranks.run(tmp_path / "runs", 2, *words, before=elsewhere)
    assert ended(done) == [4, 4] and "the images are not those" in done[0].error


def test_evaluate_gives_one_answer(whole):
    path = whole / "d0.2/model.safetensors"
    one = call("--evaluate", path, "--device", "cpu").result
    done = ranks.run(whole.parent / "e", 2, "--evaluate", path)
    assert ended(done) == [0, 0] and done[0].result["clean"] == one["clean"]


def test_a_run_folder_in_use_is_refused_by_all(tmp_path):
    first = alone(tmp_path / "runs", *WORDS, "--epochs", 0).folder
    with Run(first, json.loads((first / "config.json").read_text()), Stop()):
        done = ranks.run(tmp_path / "runs", 2, *WORDS, "--epochs", 0)
    assert ended(done)[0] == 1 and "is in use by" in done[0].error


# As torchrun starts them


def torchrun(save_dir: Path, *options: str) -> subprocess.Popen:
    """Two processes of a small run under torchrun itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *options,
               "main_vpns.py", *SMALL, "--save_dir", save_dir, "--density_list", "0.2",
               "--epochs", "30"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, **pipes)


def curves(save_dir: Path) -> list[Path]:
    """The curves of the runs that have made an epoch."""
    return [path for path in save_dir.glob("*/*/seed*/metrics.jsonl") if path.stat().st_size]


def workers(process: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started."""
    return [*map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]


@pytest.mark.slow
def test_torchrun_is_stopped_by_a_signal_and_its_command_goes_on(tmp_path):
    calm = torchrun(tmp_path / "calm")
    assert calm.communicate(timeout=200) and calm.returncode == 0
    stopped = torchrun(tmp_path / "stopped")
    wait_for(lambda: curves(tmp_path / "stopped"), stopped)
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=60)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert lines == ["error: stopped by SIGTERM; the same command continues from here"]
    again = torchrun(tmp_path / "stopped")
    out, _ = again.communicate(timeout=200)
    assert again.returncode == 0 and out.count("RESULT ") == 1 and "continuing" in out
    assert hashes(only_run(tmp_path / "calm")) == hashes(only_run(tmp_path / "stopped"))


@pytest.mark.slow
def test_torchrun_starts_a_run_again_that_has_lost_a_process(tmp_path):
    process = torchrun(tmp_path / "runs", "--max-restarts=1")
    wait_for(lambda: curves(tmp_path / "runs"), process)
    os.kill(workers(process)[-1], signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and out.count("RESULT ") == 1
