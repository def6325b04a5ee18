"""What goes wrong: one line, the right exit code, no traceback, nothing half-written."""

import errno
import io
import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from cli import SMALL, call, files, finish, forked, hashes, only_run, run, start

import main_vpns
from models.artifact import export
from program import record
from pruning.masks import MaskKeeper
from pruning.scores import LearnedScores

QUICK = ["--density_list", "0.1", "--eval_every", 0, "--input_size", 4, "--output_size", 4]

USAGE = {
    "misspelt flag": (["--densitylist", "0.1"], "did you mean --density_list?"),
    "abbreviated flag": (["--epoch", "3"], "did you mean --epochs?"),
    "stray word": (["train"], "unknown argument 'train'"),
    "flag without a value": (["--epochs"], "expected one argument"),
    "density 0": (["--density_list", "0"], "density 0 keeps no weight"),
    "density 1.2": (["--density_list", "0.5,1.2"], "1.2 is out of range"),
    "density -1": (["--density_list", "-1"], "-1 is out of range"),
    "density nan": (["--density_list", "nan"], "nan is out of range"),
    "density of a word": (["--density_list", "half"], "'half' is not a number"),
    "no density": (["--density_list", ","], "no density given"),
    "epochs -1": (["--epochs", "-1"], "-1 is out of range: it must be at least 0"),
    "epochs 1.5": (["--epochs", "1.5"], "'1.5' is not an integer"),
    "batch 0": (["--batch_size", "0"], "0 is out of range: it must be at least 1"),
    "workers -1": (["--workers", "-1"], "out of range"),
    "negative rate": (["--weight_lr", "-0.1"], "out of range"),
    "infinite rate": (["--score_lr", "inf"], "out of range"),
    "momentum 2": (["--momentum", "2"], "it must be from 0 to 1"),
    "val_fraction 0.9": (["--val_fraction", "0.9"], "it must be from 0 to 0.5"),
    "steps beyond the end": (["--decreasing_step", "0.5,1.5"], "1.5 is out of range"),
    "seed of 65 bits": (["--seed", str(2**64)], "out of range"),
    "negative seed": (["--seed", "-1"], "out of range"),
    "density just beyond": (["--density_list", "1.2"], "it must be in (0, 1]"),
    "density of a checkpoint": (["--density", "0"], "it must be in (0, 1]"),
    "misspelt device": (["--device", "cude"], "did you mean 'cuda'?"),
    "unknown device": (["--device", "tpu9"], "choose from auto, cpu, cuda, mps or cuda:N"),
    "misspelt weights": (["--weights", "fashion_mnit"], "did you mean 'fashion_mnist'?"),
    "empty file name": (["--init_mask", ""], "argument --init_mask: it is empty"),
    "empty checkpoint": (["--evaluate", ""], "argument --evaluate: it is empty"),
    "empty folder": (["--save_dir", ""], "argument --save_dir: it is empty"),
    "misspelt switch": (["--no_downlod"], "did you mean --no_download?"),
    "capital letters": (["--EPOCHS", "3"], "did you mean --epochs"),
    "pad beyond half": (["--pad_size", "5"], "pad_size 5 is out of range: 0 to 4"),
    "mask beyond the canvas": (["--prompt_method", "fix", "--mask_size", "9"], "mask_size 9"),
    "image beyond the canvas": (["--input_size", "9"], "input_size 9 is larger than output_size 8"),
    "expand without a ring": (["--prompt_method", "expand"], "leaves no ring"),
    "unknown dataset": (["--dataset", "cifar1000"], "did you mean 'cifar100'?"),
    "unknown network": (["--network", "resnet19"], "did you mean 'resnet18'?"),
    "unknown method": (["--prune_method", "vpn"], "did you mean 'vpns'?"),
    "unknown optimizer": (["--weight_optimizer", "sdg"], "did you mean 'sgd'?"),
    "weights of another network": (["--weights", "imagenet"], "resnet20 has no weights 'imagenet'"),
    "weights of no network": (["--weights", "imagenett"], "resnet20 has no weights 'imagenett'"),
    "more classes than sources": (["--dataset", "cifar100"],
                                  "100 target classes cannot be mapped to 10 source classes"),
    "more images than there are": (["--train_images", "5000"], "digits has 1437 training images"),
    "post_prompt without a prompt": (["--prompt_method", "none", "--post_prompt", "zeroshot"],
                                     "--post_prompt needs a prompt"),
    "two starts": (["--from_dense", "--init_from", __file__], "--from_dense and --init_from both"),
    "init_from without a file": (["--init_from"], "--init_from needs a file"),
    "a chain that rises": (["--prune_method", "lth", "--density_list", "0.1,0.2"],
                           "from the highest to the lowest"),
}  # fmt: skip


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors_are_one_line_and_exit_with_2(tmp_path, case):
    words, text = USAGE[case]
    done = run(tmp_path, *words)
    assert (done.code, done.out) == (2, "") and text in done.error


OTHER = {
    "no GPU": (["--device", "cuda"], 1, "cuda"),
    "missing weights": (["--weights", "nowhere/w.pth"], 1, "nowhere/w.pth does not exist"),
    "missing mask": (["--init_mask", "nowhere/m.pth"], 1, "nowhere/m.pth does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_other_errors_are_one_line_and_have_their_code(tmp_path, case):
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words, code, text = OTHER[case]
    done = run(tmp_path, *QUICK, *words)
    assert done.code == code and text in done.error


@pytest.mark.parametrize("words", [["--device", "cuda:9"], ["--weights", "fashion_mnit"]])
def test_run_that_cannot_begin_leaves_the_earlier_one_alone(tmp_path, words):
    run(tmp_path, *QUICK, "--epochs", 0)
    before = files(tmp_path)
    assert run(tmp_path, *QUICK, "--epochs", 0, *words, "--resume", "none").code in (1, 2)
    assert files(tmp_path) == before


class Full(io.StringIO):
    """A standard output like /dev/full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_output_that_takes_no_more_is_named(tmp_path):
    done = forked(tmp_path / "run", *QUICK, before=lambda: setattr(sys, "stdout", Full()))
    assert done.code == 1
    reason = "the standard output takes no more (No space left on device): run the command again"
    assert done.error == reason


def test_usage_errors_create_no_folder(tmp_path):
    run(tmp_path / "result", "--pad_size", 5)
    assert not (tmp_path / "result").exists()


def test_missing_data_exits_with_4_and_names_the_folder(tmp_path):
    words = ["--network", "resnet18", "--dataset", "cifar10", "--data", tmp_path / "data"]
    done = call(*SMALL, *words, "--no_download", "--save_dir", tmp_path / "result")
    assert done.code == 4
    assert str(tmp_path / "data") in done.error and "cifar-10-batches-py" in done.error


def test_failed_run_says_so_in_run_json(tmp_path):
    words = ["--dataset", "imagefolder", "--data", tmp_path / "nothing", "--train_images", 0]
    done = run(tmp_path / "result", *words)
    state = json.loads((only_run(tmp_path / "result") / "run.json").read_text())
    assert done.code == 4 and state["state"] == "failed" and state["reason"] == done.error


def test_save_dir_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file", *QUICK)
    assert done.code == 1 and done.error.endswith("choose another folder with --save_dir")


def test_file_in_place_of_the_level_is_one_line(tmp_path):
    folder = run(tmp_path, *QUICK, "--density_list", "0.2", "--epochs", 0).folder
    (folder / "d0.1").write_text("")
    done = run(tmp_path, *QUICK, "--epochs", 0)
    assert done.code == 1 and str(folder / "d0.1") in done.error


# A full disk


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), *QUICK)


@pytest.mark.parametrize("room", [500, 4000, 30_000, 600_000, 1_500_000])
def test_full_disk_is_one_line_and_the_run_goes_on_later(undisturbed, tmp_path, room):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    full = forked(tmp_path / "run", *QUICK, before=little_room)
    assert full.code == 1 and "no room to write" in full.error
    left = files(tmp_path / "run")
    assert not [name for name in left if name.endswith(".tmp")]
    assert not [name for name in left if f"{name}.sha256" not in left and ".safet" in name[-12:]]
    again = run(tmp_path / "run", *QUICK)
    assert hashes(again.folder) == hashes(undisturbed.folder)


def test_disk_that_fills_up_keeps_the_state_before(small_disk, tmp_path):
    words = [*QUICK, "--epochs", 2]
    full = run(small_disk / "run", *words)
    assert full.code == 1 and "state-2.pt (No space left on device): free some space" in full.error
    assert [path.name for path in small_disk.rglob("state-*.pt")] == ["state-1.pt"]
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    again = run(small_disk / "run", *words)
    assert "continuing search after epoch 1" in again.out
    assert hashes(again.folder) == hashes(run(tmp_path / "whole", *words).folder)


# A folder that cannot be written


def test_folder_that_cannot_be_written_is_one_line(lockable):
    folder, lock = lockable
    lock()
    failed = run(folder / "result", *QUICK)
    assert failed.code == 1 and failed.error.startswith(f"cannot write {folder / 'result'}")
    assert failed.error.endswith("choose another folder with --save_dir")


def test_run_folder_that_became_read_only_is_one_line(lockable):
    folder, lock = lockable
    words = [*QUICK, "--epochs", 0]
    made = run(folder / "result", *words)
    lock()
    failed = run(folder / "result", *words)
    assert failed.code == 1 and failed.error.startswith(f"cannot write {made.folder}")


# Numbers


def test_loss_that_is_not_finite_exits_with_3(tmp_path):
    done = run(tmp_path, *QUICK, "--weight_lr", "1e30", "--epochs", 2)
    assert done.code == 3 and done.error.endswith("lower the learning rate")
    assert "density 0.1, stage finetune, epoch 1, step 1" in done.error


def test_run_that_was_not_finite_keeps_its_search(tmp_path):
    run(tmp_path, *QUICK, "--weight_lr", "1e30", "--epochs", 2)
    folder = only_run(tmp_path)
    assert (folder / "d0.1/search.safetensors").exists()
    assert not (folder / "d0.1/model.safetensors").exists()
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"


# A model that is not as sparse as was asked for


def refused(done, reason):
    """The run ended with the reason, and no file of the kind that it was about to write."""
    assert done.code == 1 and done.error.endswith("the model is not saved: a bug")
    assert reason in done.error
    return True


def test_weights_that_leave_their_mask_are_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(MaskKeeper, "__call__", lambda keeper: None)
    assert refused(run(tmp_path, *QUICK), "density 0.1: conv1.weight does not follow its mask in ")
    assert not list(tmp_path.rglob("model.safetensors"))


def test_pruned_places_that_are_not_plus_zero_are_not_saved(tmp_path, monkeypatch):
    def export_minus_zero(model, masks):
        tensors, meta = export(model, masks)
        tensors["fc.weight"] = torch.where(masks["fc.weight"], tensors["fc.weight"], -0.0)
        return tensors, meta

    monkeypatch.setattr(record, "export", export_minus_zero)
    assert refused(run(tmp_path, *QUICK), "fc.weight does not follow its mask in ")
    assert not list(tmp_path.rglob("search.safetensors"))


def test_masks_that_keep_one_weight_too_many_are_not_saved(tmp_path, monkeypatch):
    plain = LearnedScores.masks

    def one_more(learned):
        masks = plain(learned)
        flat = masks["fc.weight"].view(-1)
        flat[int(flat.logical_not().nonzero()[0])] = True
        return masks

    monkeypatch.setattr(LearnedScores, "masks", one_more)
    assert refused(run(tmp_path, *QUICK), "the mask keeps 26835 of 268336 weights instead of 26834")
    assert not list(tmp_path.rglob("*.safetensors"))


# What nobody expected


def break_down(*args):
    raise RuntimeError("two\nlines")


def test_unexpected_error_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(main_vpns, "load_data", break_down)
    done = run(tmp_path, *QUICK)
    assert done.code == 1
    assert done.error == "RuntimeError: two lines (this is a bug: run with --debug and report it)"


def test_debug_shows_the_traceback_before_the_line(tmp_path, monkeypatch):
    monkeypatch.setattr(main_vpns, "load_data", break_down)
    done = run(tmp_path, *QUICK, "--debug")
    assert done.err.startswith("Traceback") and "in break_down" in done.err
    assert done.err.splitlines()[-1].startswith("error: RuntimeError")


def test_debug_shows_the_traceback_of_a_usage_error():
    assert call("--debug", "--epochs", "-1").err.startswith("Traceback")


def test_lack_of_memory_names_the_flags_to_lower(tmp_path, monkeypatch):
    def too_much(*args):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(main_vpns, "load_data", too_much)
    assert "lower --batch_size" in run(tmp_path, *QUICK).error


def test_process_of_its_own_prints_one_line_and_exits_with_2(tmp_path):
    done = finish(start("--densitylist", "0.1", cwd=tmp_path))
    assert done.code == 2 and "did you mean --density_list?" in done.error and not done.out
    assert not list(tmp_path.iterdir())


def test_a_rest_of_one_image_that_cannot_be_trained_on_is_explained(tmp_path):
    done = run(
        tmp_path, "--network", "resnet18", "--input_size", 16, "--output_size", 16,
        "--train_images", 33, "--batch_size", 32,
    )  # fmt: skip
    assert done.code == 2 and "a batch of 1 cannot be trained on" in done.error
