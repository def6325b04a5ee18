"""Whole runs through the command line: what they leave behind and what their numbers depend on."""

import csv
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli import SMALL, call, files, finish, hashes, meta, metrics, run, start
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import program.model
from data.views import View
from models.artifact import masks_of
from models.label_map import count_predictions
from program.settings import Config
from runfolder.results import find_dense
from utils.checkpoint import load_model
from utils.config import flatten

LEVEL = {
    f"{name}.safetensors{end}" for name in ("model", "search") for end in ("", ".sha256")
} | {"metrics.json", "confusion.csv", "confusion.png"}
FOLDER = {
    "config.json", "env.json", "run.json", "run.lock", "log.txt", "metrics.jsonl", "events",
    "results.csv", "curves.png",
}  # fmt: skip
HEADER = (
    "network,dataset,method,seed,density,real_density,kept,prunable,before,after_search,clean,"
    "prompted,passes,macs,packed_bytes"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two levels, two epochs; a leading 1."""
    return run(tmp_path_factory.mktemp("run"), "--density_list", "1,0.2,0.1", "--epochs", 2)


@pytest.fixture
def folder(whole):
    return whole.folder


def table(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


# What a run leaves behind


def test_folder_is_named_by_network_dataset_method_and_seed(folder):
    experiment, cell, name = folder.parts[-3:]
    assert (experiment, cell) == ("vpns", "resnet20-digits-vpns")
    assert name.startswith("seed7-") and len(name) == len("seed7-01234567")


def test_folder_holds_the_files_of_the_contract_and_no_other(folder):
    levels = {f"{level}/{name}" for level in ("d0.1", "d0.2") for name in LEVEL}
    assert files(folder) == FOLDER | levels


def test_run_json_says_done(folder):
    state = json.loads((folder / "run.json").read_text())
    assert state["state"] == "done" and state["seconds"] > 0


def test_config_json_holds_every_flag(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config.keys() == flatten(Config()).keys()
    assert config["input_size"] == 8 and config["density_list"] == [1, 0.2, 0.1]


def test_env_json_holds_the_versions(folder):
    env = json.loads((folder / "env.json").read_text())
    assert env["torch"] == torch.__version__ and env["threads"] == 1


def test_metrics_have_a_line_an_epoch(folder):
    stages = [("search", 1), ("search", 2), ("finetune", 1), ("finetune", 2)]
    assert metrics(folder) == [(d, *stage) for d in (0.2, 0.1) for stage in stages]


def test_metrics_have_the_losses_of_both_views(folder):
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert {"prompted_loss", "clean_loss", "test_accuracy", "lr", "seconds"} <= row.keys()


def test_log_has_the_lines_of_the_console(whole):
    log = (whole.folder / "log.txt").read_text()
    assert all(line in log for line in whole.out.splitlines() if not line.startswith("RESULT"))


def test_results_have_a_row_a_density(folder):
    assert (folder / "results.csv").read_text().splitlines()[0] == HEADER
    assert [row["density"] for row in table(folder)] == ["0.2", "0.1"]


def test_result_line_repeats_the_table(whole):
    shown = [{k: str(v) for k, v in row.items()} for row in whole.result["rows"]]
    assert shown == [{name: row[name] for name in shown[0]} for row in table(whole.folder)]


def test_result_line_names_the_run(whole):
    named = {k: whole.result[k] for k in ("network", "dataset", "method", "seed")}
    expected = {"network": "resnet20", "dataset": "digits", "method": "vpns", "seed": 7}
    assert named == expected


def test_passes_count_two_views_in_two_stages(folder):
    assert [row["passes"] for row in table(folder)] == ["8", "8"]


def test_curves_are_a_picture(folder):
    assert Image.open(folder / "curves.png").format == "PNG"


def test_side_cars_hold_the_digests(folder):
    for side_car in folder.glob("d*/*.sha256"):
        digest, name = side_car.read_text().split()
        assert digest == hashlib.sha256((side_car.parent / name).read_bytes()).hexdigest()


def test_mask_has_the_requested_count_to_the_last_weight(folder):
    for row in table(folder):
        path = folder / f"d{row['density']}" / "model.safetensors"
        weights = [t for k, t in load_file(path).items() if k.endswith("weight") and t.ndim > 1]
        listed = sum(map(len, meta(path)["kept_zeros"].values()))
        total = sum(w.numel() for w in weights)
        kept = sum(int((w != 0).sum()) for w in weights) + listed
        assert kept == int(row["kept"]) == total - int((1 - float(row["density"])) * total)


def test_pruned_weights_are_positive_zeros(folder):
    for path in folder.glob("d*/*.safetensors"):
        for tensor in load_file(path).values():
            assert not torch.signbit(tensor[tensor == 0]).any()


def test_metadata_are_the_format_and_one_key_of_json(folder):
    with safe_open(folder / "d0.1/model.safetensors", "pt") as file:
        assert file.metadata().keys() == {"format", "vpns"}


def test_metadata_describes_the_model(folder):
    about = meta(folder / "d0.1/model.safetensors")
    assert (about["network"], about["dataset"], about["density"]) == ("resnet20", "digits", 0.1)
    assert len(about["label_map"]) == 10 and about["program"]["shape"] == [3, 8, 8]
    assert about["normalisation"]["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_metadata_has_no_path_of_the_machine(folder):
    assert str(folder.parents[2]) not in json.dumps(meta(folder / "d0.1/model.safetensors"))


def test_finished_run_is_printed_and_not_repeated(whole):
    paths = sorted(p for p in whole.folder.rglob("*") if p.is_file() and p.name != "run.json")
    before = [(path, path.stat().st_mtime_ns) for path in paths if "run.lock" not in path.name]
    again = run(whole.folder.parents[2], "--density_list", "1,0.2,0.1", "--epochs", 2)
    note, result = again.out.splitlines()
    assert note == "note: this run is done; --resume none makes it anew"
    assert json.loads(result.removeprefix("RESULT ")) == whole.result | {"read": [0.2, 0.1]}
    assert whole.result["read"] == [] and note not in whole.out
    assert before == [(path, path.stat().st_mtime_ns) for path, _ in before]


# A stock network loads it

LOADER = """
import sys, torchvision, safetensors.torch as s
network = torchvision.models.resnet18(weights=None)
network.load_state_dict(s.load_file(sys.argv[1]), strict=True)
kept = sum(int((m.weight != 0).sum()) for m in network.modules() if hasattr(m, "kernel_size")
           and hasattr(m, "weight")) + int((network.fc.weight != 0).sum())
ours = {"models", "pruning", "prompts", "program", "utils", "main_vpns"} & set(sys.modules)
print(kept, sorted(ours))
"""


def resnet18(save_dir, *words):
    sizes = ["--network", "resnet18", "--input_size", 16, "--output_size", 16, "--eval_every", 0]
    return run(save_dir, *sizes, "--train_images", 20, "--batch_size", 10, *words)


def load_with_torchvision(model, cwd):
    command = [sys.executable, "-I", "-c", LOADER, str(model)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_resnet18_of_32_pixels_loads_into_plain_torchvision(tmp_path):
    words = ["--input_size", 32, "--output_size", 32, "--pad_size", 4, "--density_list", "0.2"]
    done = resnet18(tmp_path, *words, "--train_images", 160, "--batch_size", 32)
    shown = load_with_torchvision(done.folder / "d0.2/model.safetensors", tmp_path)
    assert shown.split(maxsplit=1) == [str(11_678_912 - 9_343_129), "[]\n"]


# What the numbers depend on


def test_a_new_process_in_another_folder_gives_the_same_bytes(whole, tmp_path):
    words = ["--save_dir", tmp_path, "--density_list", "1,0.2,0.1", "--epochs", 2]
    again = finish(start(*SMALL, *words, cwd=tmp_path))
    assert hashes(again.folder) == hashes(whole.folder)


def test_three_seeds_give_three_masks(tmp_path):
    runs = [run(tmp_path, "--density_list", "0.1", "--seed", seed).folder for seed in (7, 8, 9)]
    assert [folder.name.split("-")[0] for folder in runs] == ["seed7", "seed8", "seed9"]
    masks = [masks_of(*load_model(folder / "d0.1/model.safetensors")) for folder in runs]
    for one, other in itertools.combinations(masks, 2):
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_same_seed_twice_gives_the_same_bytes(whole, tmp_path):
    again = run(tmp_path, "--density_list", "1,0.2,0.1", "--epochs", 2)
    assert again.folder != whole.folder and hashes(again.folder) == hashes(whole.folder)


def test_a_level_does_not_depend_on_those_before_it(whole, tmp_path):
    alone = run(tmp_path, "--density_list", "0.1", "--epochs", 2).folder
    name = "d0.1/model.safetensors"
    assert hashes(alone)[name] == hashes(whole.folder)[name]


def test_adding_a_density_extends_the_run(whole, tmp_path):
    first = run(tmp_path, "--density_list", "0.1", "--epochs", 2).folder
    model = first / "d0.1/model.safetensors"
    before = model.stat().st_mtime_ns
    second = run(tmp_path, "--density_list", "0.2,0.1", "--epochs", 2).folder
    assert second == first and model.stat().st_mtime_ns == before
    assert hashes(second) == hashes(whole.folder)


def write_images(root):
    draw = torch.Generator().manual_seed(0)
    for part, count in (("train", 5), ("test", 3)):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (9, 9, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / part / label / f"{number}.png")


def test_the_number_of_workers_changes_nothing(tmp_path):
    write_images(tmp_path / "images")
    words = ["--dataset", "imagefolder", "--data", tmp_path / "images", "--train_images", 0]
    words += ["--density_list", "0.1", "--batch_size", 4, "--cache_gb", 0]
    one, two = (
        run(tmp_path / f"{workers}", *words, "--workers", workers).folder for workers in (0, 2)
    )
    assert one.name == two.name and hashes(one) == hashes(two)


# Every kind of run

QUICK = ["--density_list", "0.1", "--eval_every", 0]


def model_meta(done):
    return meta(done.folder / "d0.1/model.safetensors")


@pytest.mark.parametrize("kind", ["fix", "random", "expand"])
def test_prompt_kinds_train_their_program(tmp_path, kind):
    done = run(tmp_path, *QUICK, "--prompt_method", kind, "--input_size", 6)
    about = model_meta(done)
    assert about["prompt"] == kind and set(about["program"]["data"]) - {"A", "="}
    assert done.result["rows"][0]["prompted"] is not None


def test_without_a_prompt_there_is_one_view_and_no_program(tmp_path):
    done = run(tmp_path, *QUICK, "--prompt_method", "None")
    (row,) = done.result["rows"]
    assert model_meta(done)["program"] is None
    assert row["prompted"] is None and row["passes"] == 2
    assert table(done.folder)[0]["prompted"] == ""


def test_pad_of_width_0_leaves_the_program_at_zero(tmp_path):
    done = run(tmp_path, *QUICK, "--pad_size", 0)
    (row,) = done.result["rows"]
    assert not set(model_meta(done)["program"]["data"]) - {"A", "="}
    assert row["prompted"] == row["clean"] and row["passes"] == 4


@pytest.mark.parametrize("mode", ["score+vp_weight+vp", "score+vp_weight", "weight+vp_score"])
def test_prune_modes_show_the_prompt_in_their_stages(tmp_path, mode):
    done = run(tmp_path, *QUICK, "--prune_mode", mode)
    rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    stages = ("score+vp" in mode, "weight+vp" in mode)
    assert tuple("prompted_loss" in row for row in rows) == stages
    assert model_meta(done)["config"]["prune_mode"] == mode
    assert done.result["rows"][0]["passes"] == 4


def test_mode_without_prompt_takes_one_clean_step(tmp_path):
    (row,) = run(tmp_path, *QUICK, "--prune_mode", "score_weight").result["rows"]
    assert row["passes"] == 2 and row["prompted"] is None


@pytest.mark.parametrize("mapping", ["flm", "ilm", "rlm"])
def test_label_mappings_give_distinct_source_classes(tmp_path, mapping):
    about = model_meta(run(tmp_path, *QUICK, "--label_mapping_mode", mapping))
    assert sorted(about["label_map"]) == list(range(10))
    assert about["config"]["label_mapping_mode"] == mapping


def test_without_a_mapping_the_head_has_one_output_a_class(tmp_path):
    write_images(tmp_path / "images")
    words = ["--dataset", "imagefolder", "--data", tmp_path / "images", "--train_images", 0]
    done = run(tmp_path, *QUICK, *words, "--batch_size", 4, "--label_mapping_mode", "none")
    path = done.folder / "d0.1/model.safetensors"
    assert load_file(path)["fc.weight"].shape == (2, 64) and meta(path)["label_map"] is None


def test_hydra_trains_on_the_clean_view(tmp_path):
    done = run(tmp_path, *QUICK, "--prune_method", "hydra")
    assert done.folder.parent.name == "resnet20-digits-hydra"
    assert done.result["rows"][0]["passes"] == 2


def test_dense_makes_one_level_and_notes_the_ignored_ones(tmp_path):
    done = run(tmp_path, "--prune_method", "dense", "--density_list", "1,0.5,0.1", "--seed", 3)
    (row,) = done.result["rows"]
    assert row["density"] == row["real_density"] == 1 and row["kept"] == row["prunable"]
    assert "note: dense makes density 1 only; ignored: 0.5, 0.1" in done.out
    assert {path.name for path in done.folder.glob("d*")} == {"d1"}


def test_dense_without_a_list_says_nothing_of_densities(tmp_path):
    assert "ignored" not in run(tmp_path, "--prune_method", "dense", "--epochs", 0).out


def test_no_epochs_leave_the_masked_source_network(tmp_path):
    (row,) = run(tmp_path, *QUICK, "--epochs", 0).result["rows"]
    assert row["passes"] == 0 and row["clean"] == row["after_search"]


# Which epoch counts


def test_measuring_on_the_test_images_changes_no_result(tmp_path):
    often, never = (
        run(tmp_path / f"{n}", "--density_list", "0.1", "--eval_every", n).folder for n in (1, 0)
    )
    assert "test_accuracy" not in (never / "metrics.jsonl").read_text()
    assert hashes(often) == hashes(never)


def dense(save_dir, epochs, seed):
    """With validation and a rate that stays, so that a shorter run is the start of a longer."""
    words = ["--prune_method", "dense", "--val_fraction", 0.2, "--weight_lr", 0.1, "--seed", seed]
    constant = ["--weight_scheduler", "constant", "--input_size", 4, "--output_size", 4]
    done = run(save_dir, *words, *constant, "--epochs", epochs)
    lines = (done.folder / "metrics.jsonl").read_text().splitlines()
    return done.folder / "d1/model.safetensors", [json.loads(x)["val_accuracy"] for x in lines]


def test_best_validation_epoch_is_kept(tmp_path):
    for seed in range(9):
        long, values = dense(tmp_path, 4, seed)
        best = values.index(max(values))
        if best < 3:
            break
    assert best < 3, "the last epoch was the best with every seed"
    one, two = (load_file(path) for path in (long, dense(tmp_path, best + 1, seed)[0]))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_training_with_validation_never_sees_the_test_images(tmp_path, monkeypatch):
    seen, batches = [], View.batches

    def watched(view, *key, start=0):
        seen.append(view.name)
        return batches(view, *key, start=start)

    monkeypatch.setattr(View, "batches", watched)
    run(tmp_path, "--density_list", "0.1", "--val_fraction", 0.2, "--epochs", 2)
    before, searched, clean, prompted = (n for n, name in enumerate(seen) if name == "test")
    assert clean == prompted - 1 == len(seen) - 2
    assert seen[before + 1 : searched].count("val") == seen[searched + 1 : clean].count("val") == 2


def test_gpu_flag_without_a_gpu_runs_on_the_cpu_and_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run(tmp_path, *QUICK, "--device", "auto", "--gpu", 0)
    assert done.code == 0 and "note: --gpu 0: no GPU here, running on the CPU" in done.out


def test_dry_run_and_help_do_not_count_as_runs(tmp_path):
    call(*SMALL, "--save_dir", tmp_path / "result", "--dry_run")
    assert not Path(tmp_path / "result").exists()


@pytest.mark.slow
def test_quickstart_in_miniature_learns_from_the_shipped_weights(tmp_path):
    words = ["--weights", "fashion_mnist", "--input_size", 16, "--output_size", 16]
    words += ["--train_images", 240, "--epochs", 2, "--eval_every", 0, "--score_lr", 0.01]
    dense, sparse = (
        run(tmp_path, *words, "--prune_method", method, "--density_list", "1,0.2")
        for method in ("dense", "vpns")
    )
    assert find_dense(sparse.folder) == dense.result["rows"][0]
    assert min(done.result["rows"][0]["clean"] for done in (dense, sparse)) > 40


MAPPINGS = {"vpns": 1, "random": 1, "snip": 1, "omp": 1, "dense": 0, "lth": 11}


@pytest.mark.parametrize("method", MAPPINGS)
def test_labels_are_mapped_once_for_the_dense_network_and_once_behind_each_mask(
    tmp_path, monkeypatch, method
):
    """LTH goes down to density 0.1 in eleven rounds, each with a mask of its own."""
    calls = []

    def counting(*words):
        calls.append(words)
        return count_predictions(*words)

    monkeypatch.setattr(program.model, "count_predictions", counting)
    words = ["--prune_method", method, "--label_mapping_mode", "flm", "--epochs", 0]
    assert run(tmp_path, *words, "--density_list", "1" if method == "dense" else "0.1").code == 0
    assert len(calls) == 1 + MAPPINGS[method]
