"""Run folders, settings and reports of strangers: no link is followed, no word is believed unseen.

What a stranger's pickles and safetensors may do is in test_strangers.py.
"""

import csv
import gzip
import io
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import tarfile
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli import call, forked, run
from PIL import Image
from report_runs import HEADER, make_run, row, set_state
from report_runs import call as report
from test_strangers import CPU, QUICK, little_memory
from torch import nn

from data import SPECS, DataConfig, load_data
from models.artifact import masks_of
from models.backbones import NETWORKS
from models.resnet_cifar import resnet20
from program import evaluation
from program.checkpoints import SAYS, completed, read_checkpoint
from report import tables
from runfolder.own import lock, open_own
from runfolder.results import read_results
from runfolder.run import COLUMNS
from runfolder.shared import Shared
from runfolder.states import States
from utils import files
from utils.checkpoint import load_model, pack_tensor, save_model
from utils.downloads import bounded
from utils.errors import DataError, VPNsError, no_formula, printable
from utils.files import atomic_write, read_object, read_small
from utils.tensors import read_tensors

NONE = [*QUICK, "--epochs", 0]
ESCAPE = "\x1b[2J\x1b]0;owned\x07"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run that keeps a state, to be copied."""
    words = ["--epochs", 1, "--keep_states"]
    return run(tmp_path_factory.mktemp("made"), *QUICK, *words).folder


@pytest.fixture
def got(made, tmp_path):
    """A copy of the run, below the folder `got`."""
    root = shutil.copytree(made.parents[2], tmp_path / "got")
    return root / made.relative_to(made.parents[2])


def again(folder, *words):
    """The command of the run once more, on its copy."""
    save_dir = folder.parents[2]
    return run(save_dir, *QUICK, "--epochs", 1, "--keep_states", *words)


# Links

NAMES = ["config.json", "curves.png", "d0.2", "d0.2/model.safetensors", "env.json", "log.txt",
         "d0.2/model.safetensors.sha256", "d0.2/search.safetensors", "metrics.jsonl",
         "results.csv", "run.json", "run.lock", "d0.2/metrics.json", "d0.2/confusion.csv",
         "d0.2/confusion.png"]  # fmt: skip
TEMPORARY = [".run.json.7.tmp", "d0.2/.state-9.pt.x.tmp", "d0.2/state-9.pt", "notes.txt"]


def test_every_kind_of_file_in_a_run_folder_is_tried(made):
    there = {str(path.relative_to(made)) for path in made.rglob("*")}
    others = {n for n in there if "tfevents" in n or "search-" in n or "state-" in n}
    assert there - others - {"d0.2/search.safetensors.sha256"} == set(NAMES)


@pytest.mark.parametrize("way", ["auto", "none", "path"])
@pytest.mark.parametrize("name", [*NAMES, *TEMPORARY])
def test_a_link_in_a_run_folder_is_refused_and_what_it_leads_to_stays(got, tmp_path, name, way):
    mine, place = tmp_path / "mine", got / name
    if place.exists():
        shutil.move(place, mine)
    else:
        mine.write_text("mine")
    if way == "path" and name == "config.json":
        return  # nothing says then which run that is
    place.symlink_to(mine)
    before = {path: path.read_bytes() for path in [mine, *mine.rglob("*")] if path.is_file()}
    done = again(got, "--resume", got if way == "path" else way)
    assert done.code == 1 and done.error.startswith(f"{place} is a link"), done.error
    after = {path: path.read_bytes() for path in [mine, *mine.rglob("*")] if path.is_file()}
    assert after == before and place.is_symlink()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_link_between_the_results_and_the_run_is_refused(got, tmp_path, depth):
    place = [got, *got.parents][depth]
    shutil.move(place, tmp_path / "mine")
    place.symlink_to(tmp_path / "mine")
    done = again(got)
    assert done.code == 1 and done.error.startswith(f"{place} is a link")


def test_a_run_folder_that_cannot_be_listed_is_refused(got, monkeypatch):
    scan = os.scandir

    def refused(path="."):
        if str(path) == str(got):
            raise PermissionError(13, "Permission denied", str(got))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    done = again(got)
    assert done.code == 1 and done.error == (
        f"{got} cannot be listed (Permission denied): make it readable"
    )


def test_the_folder_of_all_results_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "result").symlink_to(tmp_path / "disk")
    assert run(tmp_path / "result", *NONE).code == 0
    assert run(tmp_path / "result", *NONE).code == 0


def test_a_link_in_place_of_the_shared_folder_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "shared").symlink_to(tmp_path / "mine")
    with pytest.raises(VPNsError, match="shared is a link"):
        Shared(tmp_path / "shared", {}, None).once("dense", {}, dict)
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "run.lock"])
def test_a_file_with_a_second_name_is_not_written_to(got, tmp_path, name):
    mine = tmp_path / "mine"
    os.link(got / name, mine)
    (got / "d0.2/model.safetensors").unlink()
    before = mine.read_bytes()
    done = again(got)
    assert name == "metrics.jsonl" or (done.code == 1 and "hard link" in done.error)
    assert mine.read_bytes() == before


def test_a_link_that_comes_later_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "log.txt").symlink_to(tmp_path / "mine")
    for opened in (open_own, lock):
        with pytest.raises(VPNsError, match="is a link"):
            opened(tmp_path / "log.txt")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_temporary_name_that_is_taken_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "7")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".run.json.7.tmp").symlink_to(tmp_path / "mine")
    with pytest.raises(VPNsError, match="cannot write"):
        atomic_write(tmp_path / "run.json", "{}")
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "run.json").exists()


def test_temporary_names_differ_each_time(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files.os, "replace", lambda aside, path: seen.append(aside.name))
    for _ in range(3):
        atomic_write(tmp_path / "run.json", "{}")
    assert len(set(seen)) == 3 and list(tmp_path.iterdir()) == []


def test_a_results_folder_that_everybody_may_write_to_is_named_once(tmp_path):
    folder = tmp_path / "result"
    folder.mkdir()
    folder.chmod(0o777)
    notes = [line for line in run(folder, *NONE).out.splitlines() if "everybody" in line]
    assert len(notes) == 1 and notes[0].startswith(f"note: everybody may write to {folder},")
    folder.chmod(0o755)
    assert "everybody" not in run(folder, *NONE).out


# What is quoted


@pytest.mark.parametrize(
    ("text", "line"),
    [("a b", "a b"), ("ä±", "ä±"), ("a\nb\tc", r"a\nb\tc"), ("\x1b[2J", r"\x1b[2J"),
     ("\u202egnp", r"\u202egnp"), ("\udcff", r"\udcff"), ("\u2028x", r"\u2028x")],
)  # fmt: skip
def test_a_text_is_one_printable_line(text, line):
    assert printable(text) == line


def test_a_long_text_is_cut():
    assert printable("x" * 10**6, 50) == "x" * 47 + "..."


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


QUOTED = {
    "version of another machine": lambda folder: changed(folder / "env.json", python=ESCAPE),
    "version on two lines": lambda folder: changed(folder / "env.json", torch="x\nRESULT {}"),
    "flag of another run": lambda folder: changed(
        folder.rename(folder.with_name(f"seed7-{ESCAPE}")) / "config.json", epochs=ESCAPE),
}  # fmt: skip


@pytest.mark.parametrize("case", QUOTED)
def test_what_a_run_folder_says_is_quoted_as_one_printable_line(got, case):
    QUOTED[case](got)
    done = again(got)
    assert done.code == 0 and sum(line.startswith("RESULT") for line in done.out.splitlines()) == 1
    logs = "".join(path.read_text() for path in got.parent.glob("*/log.txt"))
    assert "\x1b" not in done.out + done.err + logs
    assert r"\x1b[2J" in done.out or r"x\nRESULT {}" in done.out


def test_the_holder_of_a_lock_is_quoted_as_one_printable_line(tmp_path):
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            held = lock(tmp_path / "run.lock")
            held.write(f"\n{ESCAPE}" * 1000)
            held.flush()
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(VPNsError) as error:
            lock(tmp_path / "run.lock")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 1500


# What a file may decide

RULES = {
    "data": "/etc", "workers": 40, "cache_gb": 1e9, "download": True, "batch_size": 10**6,
    "bad_images": "skip", "train_images": 1, "val_fraction": 0.5, "compile": True, "device": "cuda",
    "save_dir": "/tmp/x", "epochs": 10**6, "resume": "/etc", "init_mask": "/etc/passwd",
    "evaluate": "x", "gpu": 3, "density_list": [0.5], "preset": "paper",
}  # fmt: skip


def rewritten(path, **changes):
    tensors, meta = load_model(path)
    save_model(path, tensors, meta | changes)


def restated(path, **changes):
    """Change a state and its settings, without a side-car."""
    state = torch.load(path, weights_only=True)
    config = state["config"] | changes.pop("config", {})
    torch.save(state | {"config": config} | changes, path)
    path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)


def state_of(folder, stage="state"):
    return max(folder.glob(f"d0.2/{stage}-*.pt"))


@pytest.mark.parametrize("kind", ["model", "state"])
def test_a_file_decides_how_its_network_is_shown_images_and_nothing_else(got, kind):
    model, state = got / "d0.2/model.safetensors", state_of(got)
    before = call("--evaluate", model if kind == "model" else state, *CPU).result
    _, meta = load_model(model)
    rewritten(model, config=meta["config"] | RULES)
    restated(state, config=RULES)
    path = model if kind == "model" else state
    assert read_checkpoint(path, {}).flags.keys() <= SAYS
    assert call("--evaluate", path, *CPU).result == before


def test_no_flag_of_where_data_lie_or_how_much_is_taken_is_a_files_to_decide():
    assert SAYS.isdisjoint(RULES)


@pytest.fixture
def fetches(monkeypatch):
    """The folders into which mnist was fetched, from nowhere."""
    seen = []
    monkeypatch.setitem(SPECS, "mnist", replace(SPECS["mnist"], fetch=seen.append))
    return seen


@pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="this Python would unpack archives unsafely"
)
def test_a_file_alone_begins_no_download_of_a_dataset(got, tmp_path, fetches):
    model = got / "d0.2/model.safetensors"
    _, meta = load_model(model)
    rewritten(model, config=meta["config"] | {"dataset": "mnist"}, dataset="mnist")
    done = call("--evaluate", model, "--data", tmp_path / "none", *CPU)
    assert done.code == 4 and "mnist not found" in done.error and fetches == []
    call("--evaluate", model, "--data", tmp_path / "none", "--dataset", "mnist", *CPU)
    assert len(fetches) == 1


@pytest.mark.parametrize(
    "config", [{"weights": "/etc/passwd.pth"}, {"network": "resnet18", "weights": "imagenet"}]
)
def test_a_state_alone_has_no_other_file_read_or_fetched(got, tmp_path, monkeypatch, config):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = state_of(got, "search")
    restated(path, config=config)
    done = call("--evaluate", path, *CPU)
    assert done.code == 2 and "name these with --weights" in done.error
    assert not (tmp_path / "hub").exists()


def test_a_large_canvas_of_a_file_is_shown_in_small_batches(got, monkeypatch):
    seen = []

    def stop(config, size, batch, device):
        seen.append(batch)
        raise VPNsError("seen")

    monkeypatch.setattr(evaluation, "load_data", stop)
    path, sizes = state_of(got), {"input_size": 4, "output_size": 4096, "prompt_method": "none"}
    state = torch.load(path, weights_only=True)
    tensors = {name: t for name, t in state["tensors"].items() if name != "prompt.program"}
    restated(path, config=sizes, tensors=tensors)
    call("--evaluate", path, *CPU)
    restated(path, config=sizes | {"input_size": 4096, "output_size": 1})
    call("--evaluate", path, *CPU)
    restated(path, config=sizes | {"output_size": 10**6})
    assert call("--evaluate", path, *CPU).code == 1 and seen == [1, 1]


def test_images_larger_than_their_canvas_are_measured_few_at_a_time():
    config = completed({"input_size": 2048, "output_size": 1, "batch_size": 1})
    assert config.measured_batch == 1


def test_the_threads_of_a_run_folder_are_bounded_by_the_machine(got):
    changed(got / "env.json", threads=1000)
    (got / "d0.2/model.safetensors").unlink()
    done = again(got)
    assert done.code == 0 and "threads as before" not in done.out


# No number that was not measured here

ROWS = [
    {"kept": 1}, {"prunable": 10**9}, {"real_density": 4e-6}, {"clean": 100.5}, {"clean": -1},
    {"clean": math.nan}, {"clean": None}, {"clean": [1]}, {"before": 101}, {"prompted": "x"},
    {"after_search": 1e300}, {"passes": -1}, {"density": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("change", ROWS, ids=str)
def test_a_row_that_is_not_of_its_tensors_is_made_again(got, change):
    path = got / "d0.2/model.safetensors"
    _, meta = load_model(path)
    rewritten(path, result=meta["result"] | change)
    (got / "d0.2/search.safetensors").unlink()
    done = again(got)
    assert done.code == 0 and "this level is made again" in done.out
    assert done.result["rows"][0] == {k: meta["result"][k] for k in done.result["rows"][0]}
    assert done.result["read"] == []


@pytest.mark.parametrize("change", [{"network": "resnet18"}, {"dataset": "mnist"}], ids=str)
def test_a_row_of_another_network_or_dataset_is_made_again(got, change):
    rewritten(got / "d0.2/model.safetensors", **change)
    assert "this level is made again" in again(got).out


def test_tensors_of_another_density_are_made_again(got):
    path = got / "d0.2/model.safetensors"
    tensors, meta = load_model(path)
    save_model(path, {n: torch.ones_like(t) for n, t in tensors.items()}, meta)
    assert "this level is made again" in again(got).out


@pytest.mark.parametrize(
    ("gone", "read"), [((), [0.2]), (("model",), [0.2]), (("model", "search"), [])], ids=str
)
def test_result_says_which_rows_hold_accuracies_that_were_read(got, gone, read):
    for name in gone:
        (got / f"d0.2/{name}.safetensors").unlink()
    assert again(got).result["read"] == read


def test_the_end_of_a_search_decides_two_accuracies_and_no_other_number(got):
    (got / "d0.2/model.safetensors").unlink()
    before = again(got).result["rows"][0]
    (got / "d0.2/model.safetensors").unlink()
    numbers = dict.fromkeys(COLUMNS, 99) | {n: before[n] for n in ("before", "after_search")}
    rewritten(got / "d0.2/search.safetensors", accuracies=numbers)
    assert again(got).result["rows"] == [before]


SEARCHES = [{"label_map": None}, {"program": None}, {"program": pack_tensor(torch.zeros(1))},
            {"program": pack_tensor(torch.zeros(3, 8, 8))}]  # fmt: skip


@pytest.mark.parametrize("change", SEARCHES, ids=lambda change: str(change)[:40])
def test_the_end_of_another_search_is_refused(got, change):
    (got / "d0.2/model.safetensors").unlink()
    rewritten(got / "d0.2/search.safetensors", **change)
    done = again(got)
    assert done.code == 1 and "search.safetensors does not hold what it should" in done.error


MASKS = [["bn1.bias"], ["bn1.running_mean"], ["conv1.weight"], [], ["conv1.weight"] * 2, "all"]


@pytest.mark.parametrize("names", MASKS, ids=str)
@pytest.mark.parametrize("file", ["model", "search"])
def test_masks_of_other_tensors_than_can_be_pruned_are_refused(got, names, file):
    path = got / f"d0.2/{file}.safetensors"
    _, meta = load_model(path)
    rewritten(path, masks=[*meta["masks"], "bn1.weight"] if names == "all" else names)
    if file == "model":
        done = call("--evaluate", path, *CPU)
        assert "this level is made again" in again(got).out
    else:
        (got / "d0.2/model.safetensors").unlink()
        done = again(got)
    assert done.code == 1 and done.error.startswith(f"{path} does not hold what it should")


def test_levels_of_other_commands_stay_in_the_table(got):
    done = again(got, "--density_list", "0.5,0.2")
    assert done.code == 0 and done.folder == got
    (got / "d0.2/model.safetensors").unlink()
    assert again(got).code == 0
    assert [row["density"] for row in read_results(got)] == [0.5, 0.2]


PLANTED = {
    "of another density": (("d0.5", {}), "has density 0.2"),
    "of other tensors": (("d0.5", {"density": 0.5}), "its tensors have another|density 0.5"),
    "of no number": (("dx", {}), "could not convert"),
    "of another name": (("d0.20", {}), "a level is named for its density"),
    "of no density": (("dnan", {"density": math.nan}), "no number under density"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_a_level_that_is_none_of_the_run_is_left_out_of_its_table(got, case):
    (name, row), reason = PLANTED[case]
    path = shutil.copytree(got / "d0.2", got / name) / "model.safetensors"
    _, meta = load_model(path)
    rewritten(path, result=meta["result"] | row)
    (got / "d0.2/model.safetensors").unlink()
    done = again(got)
    (line,) = [line for line in done.out.splitlines() if "results.csv leaves it out" in line]
    assert done.code == 0 and re.search(reason, line)
    assert [row["density"] for row in read_results(got)] == [0.2]


def test_end_of_a_search_with_impossible_accuracies_is_made_again(got):
    (got / "d0.2/model.safetensors").unlink()
    rewritten(got / "d0.2/search.safetensors", accuracies={"before": 3, "after_search": 101})
    assert "the search is made again" in again(got).out


@pytest.mark.parametrize("name", ["network.fc.weight", "network.bn1.running_mean", "label_map"])
@pytest.mark.parametrize("stage", ["state", "search"])
def test_a_state_that_lacks_a_tensor_is_refused(got, name, stage):
    path = state_of(got, stage)
    tensors = torch.load(path, weights_only=True)["tensors"]
    if name not in tensors:
        return  # a search takes its weights from the source
    del tensors[name]
    restated(path, tensors=tensors)
    done = call("--evaluate", path, *CPU)
    assert done.code == 1 and "does not hold what it should" in done.error


def test_a_state_of_a_search_without_its_prompt_is_measured_without_one(got):
    path = state_of(got, "search")
    tensors = torch.load(path, weights_only=True)["tensors"]
    restated(path, tensors={n: t for n, t in tensors.items() if n != "prompt.program"})
    assert call("--evaluate", path, *CPU).result["prompted"] is None


SAID = [
    {"label_map": [1] * 10}, {"label_map": None}, {"kept_zeros": {"conv1.weight": [True]}},
    {"kept_zeros": {"conv1.weight": [-1]}}, {"kept_zeros": {"conv1.weight": [0.0]}},
    {"kept_zeros": {"conv1.weight": list(range(432))}}, {"kept_zeros": {"conv1.weight": "x"}},
    {"result": {"clean": 101}}, {"result": {"clean": math.nan}}, {"result": {"clean": "99.9"}},
    {"result": 3}, {"sizes": {"input": 4, "output": 8, "pad": 0, "mask": 2}},
    {"network": "resnet18"}, {"dataset": "mnist"}, {"prompt": "none"}, {"prompt": "fix"},
]  # fmt: skip


@pytest.mark.parametrize("change", SAID, ids=lambda change: str(change)[:40])
def test_a_model_that_says_what_cannot_be_is_refused(got, change):
    path = got / "d0.2/model.safetensors"
    rewritten(path, **change)
    done = call("--evaluate", path, *CPU)
    assert done.code == 1 and "does not hold what it should" in done.error, done.error


def planted_best(folder, change):
    """Let the state of fine-tuning have a best epoch, changed by `change(tensors)`."""
    (folder / "d0.2/model.safetensors").unlink()
    path = state_of(folder)
    tensors = {n: t.clone() for n, t in torch.load(path, weights_only=True)["tensors"].items()}
    change(tensors)
    restated(path, best={"correct": 3, "epoch": 0, "tensors": tensors})


@pytest.mark.parametrize(
    "change",
    [
        lambda best: best.update(more=torch.zeros(1)),
        lambda best: best["network.conv1.weight"].fill_(1),
        lambda best: best["label_map"].fill_(1),
        lambda best: best["label_map"].fill_(99),
        lambda best: best["network.fc.weight"].fill_(math.nan),
        lambda best: best.pop("network.fc.weight"),
    ],
    ids=["more", "masked", "map of one", "map outside", "not finite", "less"],
)
def test_the_best_epoch_of_a_state_is_looked_at_like_the_state(got, change):
    planted_best(got, change)
    done = again(got)
    if done.code:
        assert done.code == 1 and "does not hold what it should" in done.error
    else:
        tensors, meta = load_model(got / "d0.2/model.safetensors")
        assert masks_of(tensors, meta) and "more" not in tensors


@pytest.mark.parametrize("threads", [torch.tensor([1, 2]), "2", 1.5, [1], True], ids=str)
def test_threads_of_another_kind_are_not_taken_from_a_state(got, threads):
    (got / "d0.2/model.safetensors").unlink()
    restated(state_of(got), threads=threads)
    assert again(got).code == 0


HEADS = [(2 * 10**7, 0), (0, 64), (10, 64, 1), (), (0, 10**15)]


@pytest.mark.parametrize("shape", HEADS, ids=str)
@pytest.mark.parametrize("kind", ["model", "state", "weights"])
def test_nothing_is_built_for_a_head_that_the_network_cannot_have(got, tmp_path, shape, kind):
    tensors, meta = load_model(got / "d0.2/model.safetensors")
    tensors["fc.weight"] = torch.zeros(shape)
    path = got / "d0.2/model.safetensors"
    save_model(path, tensors, meta)
    words = ["--evaluate", path]
    if kind == "state":
        words[1] = path = state_of(got)
        saved = torch.load(path, weights_only=True)["tensors"]
        restated(path, tensors=saved | {"network.fc.weight": torch.zeros(shape)})
    if kind == "weights":
        words = [*NONE, "--weights", path, "--save_dir", tmp_path]
    done = forked(tmp_path / "result", *words, *CPU, before=little_memory)
    assert done.code == 1 and "bug" not in done.error
    assert re.search(r"fc\.(weight|bias)|TypeError", done.error)


def test_weights_of_a_type_that_cannot_be_converted_are_refused(got, tmp_path):
    tensors, _ = load_model(got / "d0.2/model.safetensors")
    halves = tensors["fc.weight"].shape
    tensors["fc.weight"] = torch.zeros(halves, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_model(tmp_path / "w.safetensors", tensors, {})
    done = run(tmp_path, *NONE, "--weights", tmp_path / "w.safetensors")
    assert done.code == 1 and "w.safetensors" in done.error and "bug" not in done.error


def test_scores_without_a_value_are_refused(tmp_path):
    scores = {"conv1.popup_scores": torch.zeros(0), "conv1.weight": torch.zeros(0)}
    torch.save({"state_dict": scores}, tmp_path / "w.pth")
    done = run(tmp_path / "runs", *NONE, "--init_mask", tmp_path / "w.pth")
    assert done.code == 1 and "w.pth" in done.error and "bug" not in done.error


def test_settings_of_more_flags_than_a_run_has_are_refused_by_the_report(tmp_path, capsys):
    for seed in (7, 8):
        folder = make_run(tmp_path, "vpns", seed, {0.1: 90})
        changed(folder / "config.json", **{f"x{i}": seed for i in range(20_000)})
    assert report(tmp_path, "--out", tmp_path / "out") == 1
    assert "more flags than a run" in capsys.readouterr().err


def test_more_networks_than_a_picture_shows_are_refused_by_the_report(tmp_path, capsys):
    for number in range(101):
        changed(make_run(tmp_path, "vpns", number, {0.1: 90}) / "config.json", network=f"n{number}")
    assert report(tmp_path, "--out", tmp_path / "out") == 1
    assert "runs of 101 pairs" in capsys.readouterr().err


GIVEN = {
    "a prompt without dimensions": {"program": torch.tensor(1.0)},
    "a prompt of complex numbers": {"program": torch.zeros(3, 4, 4, dtype=torch.complex64)},
    "a prompt of a row": {"program": torch.zeros(3, 4, 1)},
    "complex weights": {"fc.bias": torch.zeros(10, dtype=torch.complex64)},
    "weights of 4 bits": {"fc.bias": torch.zeros(10, dtype=torch.float4_e2m1fn_x2)},
    "no kept weight": {"masks": False},
}  # fmt: skip


@pytest.mark.parametrize("case", GIVEN)
def test_what_a_search_cannot_start_from_is_refused(got, tmp_path, case):
    tensors, meta = load_model(got / "d0.2/model.safetensors")
    own = {n: t for n, t in GIVEN[case].items() if n in tensors}
    masks = {f"{name}_mask": (tensors[name] != 0) & ("masks" not in GIVEN[case])
             for name in meta["masks"]}  # fmt: skip
    path, other = tmp_path / "mask.pth", tmp_path / "w.safetensors"
    visual = {"visual_prompt": GIVEN[case]} if "program" in GIVEN[case] else {}
    torch.save({"state_dict": tensors | masks} | visual, path)
    words = ["--init_mask", path, "--init_from", path]
    if own:
        save_model(other, tensors | own, meta)
        words[3] = other
    done = run(tmp_path / "runs", *NONE, *words)
    assert done.code == 1 and "bug" not in done.error, done.error


def test_a_traceback_shows_no_escape_codes(got, tmp_path):
    torch.save({f"y{ESCAPE}": torch.zeros(1)}, tmp_path / "w.pth")
    done = run(tmp_path / "runs", *NONE, "--weights", tmp_path / "w.pth", "--debug")
    assert done.code == 1 and "Traceback" in done.err and "\x1b" not in done.err


@pytest.mark.parametrize(
    "text",
    [
        row(0.1, 100.5), row(0.1, 90, -1), row(0.1, 90).replace("60", "1.7e308"),
        row(0.1, 90).replace("60", "-1"), "x," * 30_000 + "\n" * 3000,
        "".join(row(i / 1000, 90) for i in range(1, 202)),
    ],
    ids=["clean", "prompted", "passes", "negative", "columns", "densities"],
)  # fmt: skip
def test_results_that_no_run_has_are_refused_by_the_report(tmp_path, capsys, text):
    folder = make_run(tmp_path, "vpns", 7, {})
    (folder / "results.csv").write_text(text if text.startswith("x,") else HEADER + text)
    with pytest.raises(VPNsError, match=r"results\.csv is damaged"):
        read_results(folder)
    assert report("table", folder) == 1 and "is damaged" in capsys.readouterr().err


# Bounds on what is read


def test_a_small_file_is_read_whole_and_a_larger_one_not_at_all(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * 100)
    assert read_small(path, 100) == b"x" * 100
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_small(path, 99)


@pytest.mark.parametrize("name", ["env.json", "run.json"])
def test_large_settings_count_as_damaged(got, name):
    changed(got / name, x="x" * files.SMALL)
    assert read_object(got / name) == {} and again(got).code == 0


@pytest.mark.parametrize("depth", [19, 950, 990])
def test_settings_of_any_depth_stop_nothing(got, depth):
    text = '{"epochs": ' + "[" * depth + "]" * depth + "}"
    for name in ("env.json", "run.json", "config.json"):
        (got / name).write_text(text)
    (got / "metrics.jsonl").write_text(f'{{"density": 0.2, "x": {text}}}\n')
    other = got.with_name("seed7-00000000")
    other.mkdir()
    (other / "config.json").write_text(text)
    assert run(got.parents[2], *QUICK, "--epochs", 0, "--dry_run").code == 0
    assert run(got.parents[2], *QUICK, "--epochs", 0).code == 0
    assert again(got).code == 0


def test_a_damaged_dense_run_beside_it_ends_no_run(got):
    beside = got.parent.with_name("resnet20-digits-dense") / "seed7-00000000"
    shutil.copytree(got, beside)
    (beside / "results.csv").write_text("density,clean\nx,y\n")
    (got / "d0.2/model.safetensors").unlink()
    assert again(got).code == 0


def test_a_file_larger_than_the_memory_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.tensors.usable_memory", lambda: 2**20)
    for name in ("w.pth", "w.safetensors"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**20)  # takes no room on the disk
        with pytest.raises(VPNsError, match="larger than half of the memory"):
            read_tensors(tmp_path / name)


def test_a_large_results_csv_is_refused(got, capsys):
    with open(got / "results.csv", "ab") as file:
        file.write(b"0" * files.SMALL)
    assert report("table", got) == 1 and "no readable results.csv" in capsys.readouterr().err


def test_a_large_side_car_is_refused(got):
    path = got / "d0.2/model.safetensors"
    path.with_name(f"{path.name}.sha256").write_bytes(b"0" * 5000)
    done = call("--evaluate", path, *CPU)
    assert done.code == 1 and "model.safetensors.sha256 is no checksum" in done.error


def test_a_long_log_is_read_from_its_end(got, tmp_path, capsys):
    log = tmp_path / "log"
    log.write_bytes(b"x\n" * files.SMALL + f"RESULT {json.dumps({'run': str(got)})}\n".encode())
    assert report("table", log) == 0 and str(got) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x" * 10_000, "a\0b", "\ud800", "x/" * 3000], ids=len)
@pytest.mark.parametrize("words", [("table",), ("--out", "out")], ids=lambda words: words[0])
def test_a_log_that_names_no_folder_ends_a_report_with_one_line(tmp_path, capsys, name, words):
    (tmp_path / "log").write_text(f"RESULT {json.dumps({'run': name})}\n")
    assert report(*words, tmp_path / "log") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_list_of_densities_without_end_is_refused_by_the_report(tmp_path, capsys):
    folder = make_run(tmp_path, "vpns", 7, {0.1: 90}, density_list=[i / 5000 for i in range(4000)])
    set_state(folder, "running", "")
    assert report(tmp_path, "--out", tmp_path / "out") == 1
    assert "no such value of density_list" in capsys.readouterr().err


def test_states_of_any_number_are_found_again(got):
    states = States(got / "d0.2")
    (got / "d0.2/state-999999999999999999.pt").write_bytes(state_of(got).read_bytes())
    states.save({"stage": "finetune"})
    assert states.newest_path().name == "state-1000000000000000000.pt"
    states.remove_all()
    assert states.numbers() == []


def test_a_model_that_is_told_images_too_small_for_its_network_is_refused(got, monkeypatch):
    def pools(classes):
        return nn.Sequential(nn.MaxPool2d(8), resnet20(classes))

    row = replace(NETWORKS["resnet20"], build=pools, head="1.fc")
    monkeypatch.setitem(NETWORKS, "resnet20", row)
    path = got / "d0.2/model.safetensors"
    tensors, meta = load_model(path)
    masks = {"masks": [f"1.{name}" for name in meta["masks"]], "kept_zeros": {}}
    save_model(path, {f"1.{name}": tensor for name, tensor in tensors.items()}, meta | masks)
    done = call("--evaluate", path, *CPU)
    assert done.code == 2 and "cannot train on images of 4 px" in done.error


def test_folders_within_folders_without_end_stop_neither_a_run_nor_a_report(got):
    here, place = os.getcwd(), got
    try:
        for _ in range(1500):
            os.chdir(place)
            place = "a"
            os.mkdir(place)
        assert again(got).code == 0 and report("table", got) == 0
        assert report(got.parents[2], "--out", got.parents[2] / "out") == 0
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-r", str(got / "a")], check=True)  # shutil is no deeper than Python


@pytest.mark.parametrize("name", ["seed**-x", "seed[-x", "seed7?", f"seed7-{ESCAPE}"], ids=ascii)
def test_a_folder_of_any_name_is_shown_by_the_table(got, capsys, name):
    (got.parent.with_name("resnet20-digits-dense") / "seed1").mkdir(parents=True)
    assert report("table", got.rename(got.with_name(name))) == 0
    assert "\x1b" not in capsys.readouterr().out


def idx(*shape, data=None):
    head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    return head + (bytes(math.prod(shape)) if data is None else data)


def plant_idx(folder, images):
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(images)
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(10)))


BOMBS = {
    "more than it says": lambda: gzip.compress(idx(10, 8, 8)) + gzip.compress(bytes(2**24)) * 8,
    "says too much": lambda: gzip.compress(idx(2**31, 28, 28, data=bytes(2**24))) * 2,
    "says what it has not": lambda: gzip.compress(idx(2**20, 28, 28, data=b"x")),
    "grows too much": lambda: gzip.compress(idx(10, 4000, 4000)),
    "no rows": lambda: gzip.compress(idx(10, 0, 5)),
    "no pixels": lambda: gzip.compress(idx(10, 0, 0)),
    "no header": lambda: gzip.compress(b"\0\0\x08"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_an_idx_file_unpacks_to_what_its_header_says_and_no_more(tmp_path, case):
    plant_idx(tmp_path, BOMBS[case]())
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="train-images-idx3-ubyte.gz is damaged"):
            load_data(DataConfig("mnist", str(tmp_path), 8, 4), 8, 4, torch.device("cpu"))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def encoded(kind, size=(4, 4), mode="RGB"):
    data = io.BytesIO()
    Image.new(mode, size).save(data, kind)
    return data.getvalue()


def tiled(side):
    """A TIFF of 4 x 4 pixels in one tile of `side` x `side`."""
    tags = {256: 4, 257: 4, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: 8}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIQH", b"II", 42, 16, 0, len(tags)) + rows + bytes(4)


PICTURES = {
    "a row of 33,000 pixels": (lambda: encoded("PNG", (33_000, 1), "1"), "33,000 x 1 pixels"),
    "a column of 33,000 pixels": (lambda: encoded("PNG", (1, 33_000), "1"), "1 x 33,000 pixels"),
    "a tile of 2^30 pixels": (lambda: tiled(2**15), "32,768 x 32,768 pixels"),
    "PostScript": (lambda: encoded("EPS"), "no image"),
    "PCX": (lambda: encoded("PCX"), "no image"),
    "67 million pixels": (lambda: encoded("PNG", (8200, 8200), "1"), "8,200 x 8,200 pixels"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_of_another_format_or_of_too_many_pixels_is_refused(tmp_path, case):
    write, reason = PICTURES[case]
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").write_bytes(encoded("PNG"))
    (tmp_path / "test/a/1.png").write_bytes(write())
    words = ["--dataset", "imagefolder", "--data", tmp_path, "--label_mapping_mode", "none"]
    words += ["--train_images", 0]  # all there are
    done = run(tmp_path / "result", *NONE, *words)
    assert done.code == 4 and "1.png" in done.error and reason in done.error


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_pictures_that_people_have_are_read_whatever_their_name_ends_in(tmp_path, kind):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.jpg").write_bytes(encoded(kind))
    data = load_data(DataConfig("imagefolder", str(tmp_path), 4, 2), 4, 2, torch.device("cpu"))
    assert [len(labels) for _, labels in data.test.batches()] == [2]


def test_a_download_of_too_many_bytes_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.downloads.LOOK", 0.01)
    with (
        pytest.raises(OSError, match="more than 1,000 bytes came"),
        bounded(tmp_path, 1000, 60),
        open(tmp_path / "x", "wb") as file,
    ):
        for _ in range(6000):
            file.write(b"x" * 100)
            file.flush()
            time.sleep(0.01)
    assert (tmp_path / "x").stat().st_size < 6000 * 100


def test_a_download_that_never_ends_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.downloads.LOOK", 0.01)
    with pytest.raises(OSError, match="not whole after"), bounded(tmp_path, 1000, 0.05):
        time.sleep(60)


def test_a_bound_leaves_the_timer_of_others_as_it_was(tmp_path):
    before = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with bounded(tmp_path, 1000, 60):
            pass
        assert signal.getsignal(signal.SIGALRM) is before
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# Reports

WORDS = r"\input{/etc/passwd}\write18{x} <script>alert(1)</script> [x](http://e) $\frac{$ | `x` *y*"


@pytest.fixture
def evil(tmp_path):
    """The report's files on two runs whose settings are hostile, and one that failed."""
    runs = tmp_path / "runs"
    for seed, weights in ((7, "a"), (8, WORDS)):
        folder = make_run(runs, "vpns", seed, {0.1: 90, 0.05: 80})
        changed(folder / "config.json", weights=weights, network='=HYPERLINK("http://e")')
        changed(folder / "env.json", python="x\n\n# Forged\n\n<script>", accelerator="$x$")
    set_state(folder, "failed", "x\n\n# Forged\n\n<script>alert(1)</script>")
    assert report(runs, "--out", tmp_path / "out") == 0
    return tmp_path / "out"


def test_latex_shows_commands_as_text(evil):
    text = (evil / "table.tex").read_text()
    assert r"\input{" not in text and r"\write18" not in text
    assert r"\textbackslash{}input\{/etc/passwd\}" in text


def test_no_row_of_latex_belongs_to_the_line_break_before_it():
    text = tables.latex([["method", "90 %"], ["[5cm] x", "1"], ["*", "2"]], "caption")
    assert all(row.startswith("{}") for row in text.splitlines() if row.endswith(r"\\"))


CELLS = ["=1+1", " =1", '"=1', "a;=1", 'a;"=1', "a,\t@x", "a|-1", "＝1", "+1", "a; +1", "a\t=1"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mark", ";,\t|")
def test_no_cell_is_a_formula_whatever_mark_divides_cells(cell, mark):
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow([no_formula(cell)])
    for text in next(csv.reader([line.getvalue()], delimiter=mark)):
        assert not text.strip(' "').startswith(tuple("=+-@＝＋－＠"))


MARKS = {
    "_a_": r"\_a\_", "__a__": r"\_\_a\_\_", "fashion_mnist": "fashion_mnist", "~~a~~": r"\~\~a\~\~",
    "$a$": r"\$a\$", "http://e.org": r"http\://e.org", "www.e.org": r"www\.e.org",
    "mailto:a": r"mailto\:a", "a@b.org": "a@<!-- -->b.org", "<b>": "&lt;b&gt;", "# a": r"\# a",
    "![a](b)": r"!\[a\](b)",
}  # fmt: skip


@pytest.mark.parametrize("text", MARKS)
def test_marks_of_markdown_and_bare_links_are_shown_as_text(text):
    assert tables.plain(text) == MARKS[text]


def test_markdown_shows_headings_links_and_html_as_text(evil):
    lines = (evil / "report.md").read_text().split("```")[::2]  # commands are code, shown as it is
    text = "".join(lines)
    assert "<script" not in text and "# Forged" not in text.replace(r"\#", "")
    assert "&lt;script&gt;" in text and r"\[x\](http\://e)" in text


def test_commands_of_a_report_stay_in_their_block_and_are_quoted(evil):
    code = (evil / "report.md").read_text().split("```")[1]
    assert code.startswith("bash\n") and f"'{WORDS}'" in code


def test_a_spreadsheet_shows_formulas_as_text(evil):
    cells = (evil / "table.csv").read_text().splitlines()[1:]
    assert all(cell.startswith("\"'=HYPERLINK") for cell in cells)


def test_mathtext_in_names_ends_no_report(evil):
    assert (evil / "accuracy_vs_sparsity.png").stat().st_size > 1000


def test_mathtext_in_the_name_of_a_run_ends_no_run(got):
    named = got.rename(got.with_name(r"seed7-$\frac{$"))
    done = run(got.parents[2], *QUICK, "--epochs", 1, "--keep_states", "--resume", named)
    assert done.code == 0 and (named / "curves.png").exists()
