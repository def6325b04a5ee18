"""Settings as people give them: read back from a file, and sparsities in place of densities."""

import json
import re
from pathlib import Path

import pytest
import yaml
from cli import ROOT, Done, call, hashes, run

from program.settings import Config, read_config
from utils.config import flatten

QUICK = ["--density_list", "0.2,0.1", "--eval_every", 0, "--input_size", 4, "--output_size", 4]


def planned(*words: object) -> dict:
    done = call("--network", "resnet20", "--dataset", "digits", *words, "--dry_run")
    assert done.code == 0, done.err
    return json.loads(done.out)


def refused(*words: object) -> str:
    done: Done = call(*words, "--dry_run")
    assert done.code == 2
    return done.error


def test_the_settings_of_a_run_make_the_same_run(tmp_path: Path) -> None:
    first = run(tmp_path / "first", *QUICK, "--seed", 3, "--score_lr", 0.01)
    words = ["--config", first.folder / "config.json", "--device", "cpu"]
    again = call(*words, "--save_dir", tmp_path / "again")
    assert hashes(again.folder) == hashes(first.folder)
    assert call(*words).result["read"] == [0.2, 0.1]  # it is the same folder


def test_typed_flags_win_and_the_plan_says_where_each_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"seed": 3, "weight_lr": 1, "density_list": [0.2], "data": None}))
    plan = planned("--config", file, "--seed", 4)
    assert (plan["config"]["seed"], plan["config"]["weight_lr"]) == (4, 1.0)
    origins = {n: plan["origins"][n] for n in ("seed", "weight_lr", "density_list", "data")}
    assert origins == {"seed": "typed", "weight_lr": "config", "density_list": "config",
                       "data": "default"}  # fmt: skip


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_a_plan_can_be_read_back(tmp_path: Path, write) -> None:
    plan = planned("--sparsity", "0.9", "--prune_method", "omp")
    file = tmp_path / ("plan.json" if write is json.dumps else "plan.yaml")
    file.write_text(write(plan))
    again = planned("--config", file)
    assert {**again["config"], "config": None} == plan["config"] and again["run"] == plan["run"]


def test_a_preset_does_not_replace_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"preset": "paper", "epochs": 3}))
    assert planned("--config", file)["config"]["epochs"] == 3


FAULTS = {
    "no file": (None, "No such file"),
    "no JSON": ("{", "has no settings of ours"),
    "a list": ("[1]", "has no settings of ours"),
    "a misspelt flag": ('{"sed": 3}', "there is no flag 'sed'"),
    "a value out of range": ('{"epochs": -1}', "no such value of --epochs"),
    "a value of another kind": ('{"epochs": {"a": 1}}', "no such value of --epochs"),
    "somebody's code": ('{"network": "os:abort"}', "type --network os:abort if you trust it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_without_settings_of_ours_is_refused(tmp_path: Path, fault: str) -> None:
    text, reason = FAULTS[fault]
    file = tmp_path / "own.json"
    if text is not None:
        file.write_text(text)
    assert reason in refused("--config", file)


@pytest.mark.parametrize(("text", "densities"), [
    ("0.9,0.95", (0.1, 0.05)), ("0.7", (0.3,)), (".999", (0.001,)), ("[0.5, 0.9]", (0.5, 0.1)),
    ("0,0.8", (1.0, 0.2)), ("9e-1", (0.1,)),
])  # fmt: skip
def test_sparsities_are_densities_as_typed(text: str, densities: tuple[float, ...]) -> None:
    config, _ = read_config(["--sparsity", text])
    assert config.method.density_list == densities


def test_sparsity_names_the_run_that_its_density_names() -> None:
    assert planned("--sparsity", "0.9")["run"] == planned("--density_list", "0.1")["run"]


@pytest.mark.parametrize("text", ["1", "1.2", "-0.1", "90", "nan", "inf", "half", ","])
def test_what_is_no_sparsity_is_refused(text: str) -> None:
    assert "sparsities are numbers in [0, 1)" in refused(f"--sparsity={text}")


def test_sparsity_and_density_together_are_refused() -> None:
    assert "give one of them" in refused("--sparsity", "0.9", "--density_list", "0.1")


def test_no_default_names_a_file() -> None:
    assert flatten(Config())["config"] is None


QUICKSTART = (
    "--experiment_name", "quickstart", "--network", "resnet20", "--seed", 7, "--epochs", 5,
    "--score_lr", 0.01, "--score_vp_lr", 0.01,
)  # fmt: skip


def test_the_quickstart_has_the_folders_that_it_had_before_there_were_these_flags() -> None:
    dense = planned(*QUICKSTART, "--prune_method", "dense", "--density_list", 1, "--epochs", 20)
    vpns = planned(*QUICKSTART, "--density_list", "1,0.2,0.1,0.05,0.02")
    names = [Path(plan["run"]).name for plan in (dense, vpns)]
    assert names == ["seed7-844b48f1", "seed7-3d747b8e"]


@pytest.mark.slow
def test_the_quickstart_gives_the_table_of_the_readme_but_for_what_processors_round(
    tmp_path: Path,
) -> None:
    readme = (ROOT / "README.md").read_text().partition("## What the quickstart shows")[2]
    rows = re.findall(r"^\| (\d\d) % \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|", readme, re.MULTILINE)
    done = call("--dataset", "digits", *QUICKSTART, "--density_list", "1,0.2,0.1,0.05,0.02",
                "--save_dir", tmp_path, "--device", "cpu")  # fmt: skip
    assert len(rows) == len(done.result["rows"]) == 4
    for (_, clean, prompted), row in zip(rows, done.result["rows"], strict=True):
        assert row["clean"] == pytest.approx(float(clean), abs=2)  # seven of 360 images
        assert row["prompted"] == pytest.approx(float(prompted), abs=2)
