"""Which runs a report takes for one method, what it calls them, and the paper's numbers of it."""

import csv
from collections import Counter

import pytest
from report_runs import BOTH, NEITHER, make_run

from pruning import METHODS, Method
from pruning.method import one_shot
from pruning.omp import scores
from report.paper import FILE, SOURCES, numbers, published
from report.runs import load_runs
from runfolder.results import find_runs
from utils.errors import VPNsError

CELLS = {0.1: 90.0}


def labels(root) -> list[str]:
    return sorted({record.label for record in load_runs([root])[0]})


def test_seeds_make_one_method(tmp_path):
    for seed in (7, 9, 17):
        make_run(tmp_path, "vpns", seed, CELLS)
    assert labels(tmp_path) == ["vpns"]


@pytest.mark.parametrize(
    ("method", "flags", "label"),
    [
        ("vpns", {"pad_size": 0}, "vpns, pad 0"),
        ("hydra", {"pad_size": 0}, "hydra"),
        ("omp", {"prune_mode": BOTH}, "omp, prompt in both stages"),
        ("vpns", {"prune_mode": "score+vp_weight"}, "vpns, prompt in search only"),
        ("vpns", {"prune_mode": NEITHER}, "vpns, no prompt"),
        ("vpns", {"prompt_method": "none"}, "vpns, no prompt"),
        ("vpns", {"prompt_method": "fix"}, "vpns, fix prompt"),
        ("hydra", {"prompt_method": "none"}, "hydra"),
        ("snip", {"post_prompt": "zeroshot"}, "snip, zeroshot prompt afterwards"),
        ("vpns", {"init_mask": "a/search.safetensors"}, "vpns, given mask"),
        ("vpns", {"epochs": 1}, "vpns"),
    ],
)
def test_label_of_a_run_alone(tmp_path, method, flags, label):
    make_run(tmp_path, method, 7, CELLS, **flags)
    assert labels(tmp_path) == [label]


@pytest.mark.parametrize(
    ("flag", "values", "expected"),
    [
        ("pad_size", (2, 0), ["vpns", "vpns, pad 0"]),
        ("pad_size", (2, 4), ["vpns, pad 2", "vpns, pad 4"]),
        ("epochs", (8, 1), ["vpns, epochs 1", "vpns, epochs 8"]),
        ("ema", (0.0, 0.9), ["vpns", "vpns, ema 0.9"]),
        ("from_dense", (False, True), ["vpns", "vpns, from the dense network"]),
        ("distill", (None, ""), ["vpns", "vpns, distilled"]),
        ("label_mapping_mode", ("flm", "none"), ["vpns", "vpns, none labels"]),
        ("save_dir", ("here", "there"), ["vpns"]),
        ("density_list", ([0.1], [0.1, 0.05]), ["vpns"]),
        ("preset", ("none", "paper"), ["vpns"]),
    ],
)
def test_label_of_runs_that_differ(tmp_path, flag, values, expected):
    for value in values:
        make_run(tmp_path, "vpns", 7, CELLS, **{flag: value})
    assert labels(tmp_path) == expected


def test_settings_of_the_prompt_do_not_distinguish_runs_without_one(tmp_path):
    for lr in (0.1, 0.2):
        make_run(tmp_path, "hydra", 7, CELLS, score_vp_lr=lr)
    assert labels(tmp_path) == ["hydra"]


def test_a_share_of_distillation_distinguishes_no_run_without_it(tmp_path):
    for source, share in ((None, 0.5), ("", 0.5), ("", 0.9)):
        make_run(tmp_path, "vpns", 7, CELLS, distill=source, distill_share=share)
    assert labels(tmp_path) == ["vpns", "vpns, distilled", "vpns, distilled, distill_share 0.9"]


def test_flag_that_older_runs_do_not_have_does_not_distinguish(tmp_path):
    make_run(tmp_path, "vpns", 7, CELLS)
    make_run(tmp_path, "vpns", 9, CELLS, new_flag="x")
    assert labels(tmp_path) == ["vpns"]


def test_settings_of_another_dataset_do_not_distinguish(tmp_path):
    make_run(tmp_path, "vpns", 7, CELLS)
    make_run(tmp_path, "vpns", 7, CELLS, dataset="mnist", epochs=1)
    assert labels(tmp_path) == ["vpns"]


def test_methods_own_default_prompts_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method(one_shot(scores), prune_mode=BOTH))
    make_run(tmp_path, "mine", 7, CELLS, prune_mode=BOTH)
    make_run(tmp_path, "mine", 7, CELLS, prune_mode=NEITHER)
    assert labels(tmp_path) == ["mine", "mine, no prompt"]


def test_method_that_is_not_registered_is_shown_as_one_without_a_prompt(tmp_path):
    make_run(tmp_path, "theirs", 7, CELLS)
    make_run(tmp_path, "theirs", 7, CELLS, prune_mode=BOTH)
    assert labels(tmp_path) == ["theirs", "theirs, prompt in both stages"]


def test_run_that_repeats_another_is_left_out_and_noted(tmp_path):
    make_run(tmp_path / "a", "vpns", 7, CELLS)
    make_run(tmp_path / "b", "vpns", 7, {0.1: 80.0, 0.05: 70.0})
    (record,), notes = load_runs([tmp_path])
    assert list(record.rows) == [90, 95]
    assert notes == [f"{record.name} repeats {record.name} and is left out"]


def test_false_start_with_other_flags_is_no_other_method(tmp_path):
    make_run(tmp_path, "vpns", 7, CELLS)
    make_run(tmp_path, "vpns", 7, {}, epochs=1)
    assert labels(tmp_path) == ["vpns"]


def test_results_alone_tell_what_ran_by_their_folders(tmp_path):
    run = make_run(tmp_path, "omp", 9, CELLS)
    for name in ("config.json", "env.json", "run.json"):
        (run / name).unlink()
    ((record,), _) = load_runs([run / "results.csv"])
    assert (record.where, record.label, record.seed) == (("resnet20", "digits"), "omp", 9)


def test_results_in_a_folder_that_tells_nothing_are_refused(tmp_path):
    run = make_run(tmp_path, "omp", 9, CELLS)
    (run / "config.json").unlink()
    run.rename(tmp_path / "copy")
    with pytest.raises(VPNsError, match=r"no config\.json that says what ran"):
        load_runs([tmp_path / "copy"])


def test_runs_are_found_at_any_depth_and_not_when_set_aside(tmp_path):
    kept = make_run(tmp_path / "a" / "b", "vpns", 7, CELLS)
    aside = make_run(tmp_path, "vpns", 7, CELLS)
    aside = aside.rename(aside.with_name(f"{aside.name}.old1"))
    assert find_runs(tmp_path) == [kept]
    assert find_runs(aside) == [aside]


def test_log_names_its_run(tmp_path):
    run, log = make_run(tmp_path, "vpns", 7, CELLS), tmp_path / "vpns.log"
    log.write_text(f'RESULT {{"run": "{run}"}}\n')
    assert find_runs(log) == [run]


# The paper

# No flags of ours make these: channels instead of weights, and masks found on ImageNet.
NOT_MADE = ("structured", "imagenet_subnetwork_transfer")


def paper_config(method: str, **flags: object) -> dict[str, object]:
    mode = BOTH if method == "vpns" else NEITHER
    known = {"network": "resnet18", "dataset": "cifar100", "prune_method": method, "pad_size": 16}
    return known | {"prune_mode": mode} | flags


def test_every_published_number_is_there():
    assert sum(len(curve) for curve in numbers().values()) == 895


def test_every_published_method_has_its_flags_or_is_known_not_to():
    with open(FILE, newline="") as file:
        keys = {(row["experiment"], row["method"]) for row in csv.DictReader(file)}
    named = Counter(source[:2] for source in SOURCES)
    assert set(named) == {key for key in keys if key[0] not in NOT_MADE}
    assert set(named.values()) == {1}


@pytest.mark.parametrize(
    ("method", "flags", "accuracy", "at_90"),
    [
        ("vpns", {}, "clean", (80.58, 0.37)),
        ("hydra", {}, "clean", (77.12, 0.16)),
        ("vpns", {"prune_mode": "score+vp_weight"}, "clean", (79.97, None)),
        ("vpns", {"prompt_method": "random"}, "clean", (81.07, None)),
        ("vpns", {"input_size": 192}, "clean", (80.57, None)),
        ("omp", {"prune_mode": BOTH}, "clean", None),
        ("vpns", {"pad_size": 0}, "clean", None),
        ("vpns", {}, "prompted", None),
        ("vpns", {"init_mask": "x"}, "clean", None),
        ("omp", {"dataset": "cifar10", "post_prompt": "zeroshot"}, "clean", (14.67, None)),
        ("omp", {"dataset": "cifar10", "post_prompt": "zeroshot"}, "prompted", (78.23, None)),
        ("hydra", {"dataset": "cifar10", "post_prompt": "finetuned"}, "prompted", (94.24, None)),
        ("omp", {"network": "vgg16", "dataset": "digits"}, "clean", None),
    ],
)
def test_published_numbers_of_a_run(method, flags, accuracy, at_90):
    assert published(paper_config(method, **flags), accuracy).get(90) == at_90


def test_published_numbers_of_vpns_with_other_masks_are_prompted():
    curve = published(paper_config("lth", prune_mode=BOTH), "prompted")
    assert curve[89.26] == (79.56, None)
