"""Flags to configs and back, and which flags make a run another one."""

import difflib
import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from program.flags import parse_densities
from program.folder import changes, config_hash, nearest, resumed_folder, run_folder, set_aside
from program.plan import plan
from program.settings import NOT_IDENTITY, Config, complete, read_config
from pruning import METHODS
from utils.config import flags_of, flatten, number, parse_flags, replace_flags
from utils.errors import UsageError, VPNsError
from utils.optim import parse_shares

DEFAULTS = flatten(complete(Config()))
FLAGS = flags_of(Config())
ROOT = Path(__file__).parent.parent
PINNED = "f109ab99"  # sha256 of the JSON with sorted keys
AUTHORS = (  # the command line of their launchers
    "--experiment_name vpns --dataset cifar100 --network resnet18 --prune_method vpns "
    "--density_list 1,0.6,0.5,0.4,0.3,0.2,0.1 --weight_optimizer sgd --weight_lr 0.01 "
    "--weight_vp_optimizer sgd --weight_vp_lr 0.01 --score_optimizer adam --score_lr 0.0001 "
    "--score_vp_optimizer adam --score_vp_lr 0.0001 --gpu 0 --epochs 30 --seed 7"
)


def read(*words: str) -> dict[str, Any]:
    return flatten(read_config(words)[0])


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_config(words)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    "words",
    [("--weight_lr", "0.5"), ("--weight-lr", "0.5"), ("--weight-lr=0.5",), ("--weight_lr=0.5",)],
)
def test_hyphens_stand_for_underscores(words: tuple[str, ...]) -> None:
    assert read(*words)["weight_lr"] == 0.5


def test_hyphens_in_values_stay() -> None:
    assert read("--experiment-name=my-run")["experiment_name"] == "my-run"


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("--no_download", "download", False), ("--no-download", "download", False),
        ("--download", "download", True), ("--keep_states", "keep_states", True),
        ("--no_keep_states", "keep_states", False),
    ],
)  # fmt: skip
def test_switches_have_a_no(word: str, name: str, value: bool) -> None:
    assert read(word)[name] is value


def test_flags_are_not_abbreviated() -> None:
    assert "--weight_l" in refusal("--weight_l", "0.5")


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("--weigth_lr", "--weight_lr"), ("--epoch", "--epochs"), ("--pad-sise=3", "--pad_size"),
        ("--lr", "--weight_lr or --weight_vp_lr or --score_lr or --score_vp_lr"),
    ],
)  # fmt: skip
def test_an_unknown_flag_gets_the_nearest_names(typed: str, near: str) -> None:
    assert refusal(typed).endswith(f"did you mean {near}?")


def test_an_unknown_flag_that_is_near_nothing_points_to_the_help() -> None:
    assert "--help" in refusal("--xyzzy")


def test_an_unknown_choice_gets_the_nearest_and_all_others() -> None:
    message = refusal("--network", "resnet19")
    assert "did you mean 'resnet18'?" in message and "mobilenet_v2" in message


def test_choices_may_be_written_in_capitals() -> None:
    assert read("--weight_optimizer", "Adam")["weight_optimizer"] == "adam"


@pytest.mark.parametrize("name", ["prompt_method", "label_mapping_mode", "weights", "resume"])
@pytest.mark.parametrize("typed", ["None", "none"])
def test_the_authors_none_is_none(name: str, typed: str) -> None:
    assert read(f"--{name}", typed)[name] == "none"


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("weight_lr", "-1"), ("weight_lr", "inf"), ("weight_lr", "nan"), ("weight_lr", "x"),
        ("epochs", "-1"), ("epochs", "1.5"), ("batch_size", "0"), ("input_size", "0"),
        ("momentum", "1.1"), ("val_fraction", "0.6"), ("seed", "-1"), ("pad_size", "-1"),
        ("workers", "-1"), ("density", "2"), ("decreasing_step", "0.5,1.1"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(name: str, typed: str) -> None:
    assert refusal(f"--{name}", typed).startswith(f"argument --{name}: ")


@pytest.mark.parametrize(("typed", "value"), [("0", 0), ("3", 3)])
def test_the_ends_of_a_range_belong_to_it(typed: str, value: int) -> None:
    assert number(int, 0, 3)(typed) == value


@pytest.mark.parametrize("typed", ["-1", "4", "nan"])
def test_a_number_outside_names_both_ends(typed: str) -> None:
    with pytest.raises(ValueError, match="it must be from 0 to 3"):
        number(float, 0, 3)(typed)


@pytest.mark.parametrize(
    ("text", "densities"),
    [
        ("1,0.6,0.5", (1.0, 0.6, 0.5)), ("0.1", (0.1,)), ("[1, 0.5]", (1.0, 0.5)),
        ("0.5,0.3,0.5,0.30", (0.5, 0.3)), ("0.5,", (0.5,)), ("1e-3", (0.001,)),
    ],
)  # fmt: skip
def test_lists_of_densities(text: str, densities: tuple[float, ...]) -> None:
    assert parse_densities(text) == densities


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0", "keeps no weight"), ("0.5,0", "keeps no weight"), ("1e-17", "keeps no weight"),
        ("1.2", "out of range"), ("-1", "out of range"), ("nan", "out of range"),
        ("inf", "out of range"), ("", "no density given"), (" , ", "no density given"),
        ("half", "is not a number"), ("0.5;0.3", "is not a number"),
    ],
)  # fmt: skip
def test_densities_that_cannot_be_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_densities(text)


@pytest.mark.parametrize(
    ("text", "levels"),
    [("1,0.6,0.5", (0.6, 0.5)), ("0.6,0.5", (0.6, 0.5)), ("1", (1.0,)), ("1,1,0.5", (0.5,))],
)
def test_a_leading_1_is_skipped(text: str, levels: tuple[float, ...]) -> None:
    assert read_config(["--density_list", text])[0].levels == levels


def test_the_dense_method_makes_one_level() -> None:
    words = ["--prune_method", "dense", "--density_list", "0.5"]
    assert read_config(words)[0].levels == (1.0,)


@pytest.mark.parametrize("text", ["0.5,0.72", "[0.5,0.72]", "[0.5, 0.72]"])
def test_shares_of_the_epochs(text: str) -> None:
    assert parse_shares(text) == (0.5, 0.72)


def test_sizes_that_do_not_fit_are_refused() -> None:
    assert "pad_size 113" in refusal("--pad_size", "113")


def test_weights_of_another_network_are_refused() -> None:
    message = refusal("--network", "resnet20", "--weights", "imagenet")
    assert "resnet20 has no weights 'imagenet'" in message


def test_more_targets_than_sources_are_refused() -> None:
    message = refusal("--network", "resnet20", "--dataset", "cifar100")
    assert "100 target classes cannot be mapped to 10" in message


def test_a_head_of_its_own_may_have_more_classes() -> None:
    words = ("--network", "resnet20", "--dataset", "cifar100", "--label_mapping_mode", "none")
    assert read(*words)["label_mapping_mode"] == "none"


def test_the_authors_command_line_is_accepted() -> None:
    changed = {name for name, value in read(*AUTHORS.split()).items() if value != DEFAULTS[name]}
    assert changed == {"dataset", "gpu", "batch_size"}


def test_the_authors_defaults() -> None:
    expected = {
        "network": "resnet18", "dataset": "dtd", "seed": 7, "epochs": 30, "input_size": 224,
        "output_size": 224, "pad_size": 16, "mask_size": 115, "momentum": 0.9, "batch_size": 64,
        "decreasing_step": (0.5, 0.72), "prune_mode": "score+vp_weight+vp",
        "weight_optimizer": "sgd", "weight_lr": 0.01, "weight_weight_decay": 1e-4,
        "weight_vp_optimizer": "sgd", "weight_vp_lr": 0.01, "score_optimizer": "adam",
        "score_lr": 1e-4, "score_vp_optimizer": "adam", "score_vp_lr": 1e-4,
        "score_vp_scheduler": "cosine",
    }  # fmt: skip
    assert {name: DEFAULTS[name] for name in expected} == expected


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"vpns"}))
def test_only_vpns_prompts_unless_told(method: str) -> None:
    assert read("--prune_method", method)["prune_mode"] == "score_weight"


def test_no_prompt_means_clean_views_only() -> None:
    config, _ = read_config(["--prompt_method", "none"])
    assert config.views == (("clean",), ("clean",))


def test_the_typed_flags_are_reported() -> None:
    _, typed = read_config(["--weight-lr", "0.01", "--no-download"])
    assert typed == {"weight_lr": "typed", "download": "typed"}


def test_configs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().method.epochs = 3


def test_flattening_gives_every_flag_its_full_name() -> None:
    assert flatten(Config()).keys() == flags_of(Config()).keys()


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, 0.25)
    return value + "x" if isinstance(value, str) else (value or 0) + 1


def accepts(words: list[str], name: str) -> bool:
    """Whether the words are understood and give the flag another value than its default."""
    try:
        return flatten(read_config(words)[0])[name] != DEFAULTS[name]
    except UsageError:
        return False


def typed_otherwise(name: str) -> list[list[str]]:
    """Command lines with the flag, of which some give it another value than its default."""
    about = FLAGS[name]
    if isinstance(DEFAULTS[name], bool):
        return [[f"--{name}"], [f"--no_{name}"]]
    values = about["choices"] or ("3", "0.01", "0.3,0.2", "230", "cpu", "none", "vgg16", "half",
                                  "x.pth", "channel")  # fmt: skip
    return [[f"--{name}", value] for value in values]


@pytest.mark.parametrize("name", sorted(FLAGS.keys() - {"config"}))  # see test_recall.py
def test_every_flag_changes_the_resolved_config(name: str) -> None:
    seen_in = {"sparsity": "density_list"}.get(name, name)
    assert any(accepts(words, seen_in) for words in typed_otherwise(name))


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_every_flag_is_recognised_when_misspelt(name: str) -> None:
    """Without a letter in its middle; a name that is as near may be offered instead."""
    middle = len(name) // 2
    misspelt = name[:middle] + name[middle + 1 :]
    offered = refusal(f"--{misspelt}", "3").partition("did you mean --")[2].removesuffix("?")
    distances = {n: difflib.SequenceMatcher(None, misspelt, n).ratio() for n in FLAGS}
    assert distances[offered] == max(distances.values())


@pytest.mark.parametrize("name", [n for n in sorted(FLAGS) if FLAGS[n]["choices"]])
def test_every_choice_is_recognised_when_misspelt(name: str) -> None:
    choices = FLAGS[name]["choices"]
    for choice in choices:
        misspelt = choice + "s" if f"{choice}s" not in choices else choice + "_"
        assert f"did you mean {choice!r}?" in refusal(f"--{name}", misspelt)


def is_number(name: str) -> bool:
    """Whether a flag is a number or a list of numbers."""
    about, default = FLAGS[name], flatten(Config())[name]
    if about["choices"] or isinstance(default, bool):
        return False
    parse = about["parse"] or (str if default is None else type(default))
    try:
        return not isinstance(parse("word"), str)
    except ValueError as error:
        return " is not a" in str(error)


NUMBERS = [name for name in sorted(FLAGS) if is_number(name)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_range_that_is_named(name: str) -> None:
    message = refusal(f"--{name}", "-1")
    assert message.startswith(f"argument --{name}: -1 is out of range: it must be ")


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_may_be_infinite_or_no_number(name: str) -> None:
    for typed in ("nan", "inf", "-inf", "1e999", "", "x"):
        assert refusal(f"--{name}={typed}").startswith(f"argument --{name}: ")


def test_the_numbers_among_the_flags_are_found() -> None:
    assert {"seed", "gpu", "batch_size", "density", "density_list", "score_vp_lr"} <= {*NUMBERS}
    assert not {"weights", "init_mask", "download", "network", "data"} & {*NUMBERS}


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_replacing_a_flag_changes_that_flag_alone(name: str) -> None:
    changed = flatten(replace_flags(Config(), {name: other(DEFAULTS[name])}))
    assert changed == flatten(Config()) | {name: other(DEFAULTS[name])}


def test_replacing_every_flag_undoes_flattening() -> None:
    config = read_config(["--weight_vp_lr", "3", "--pad_size", "5", "--epochs", "2"])[0]
    assert replace_flags(Config(), flatten(config)) == config


def test_parsing_goes_over_the_values_it_is_given() -> None:
    base = replace_flags(Config(), {"epochs": 5, "seed": 1})
    config, _ = parse_flags(base, ["--seed", "2"])
    assert (config.method.epochs, config.run.seed) == (5, 2)


def test_the_plan_counts_weights_passes_and_prompt_values() -> None:
    words = ["--dataset", "cifar10", "--density_list", "0.2", "--epochs", "3"]
    found = plan(*read_config(words))
    assert found["prunable"] == 11_678_912 and found["prompt_values"] == 39_936
    expected = {"density": 0.2, "sparsity": 0.8, "kept": 11_678_912 - 9_343_129, "passes": 12}
    assert found["levels"] == [expected]


def test_the_hash_of_a_config_never_changes() -> None:
    assert config_hash({"epochs": 3, "network": "resnet18", "decreasing_step": (0.5,)}) == PINNED


FOLDERS = {"save_dir", "experiment_name", "seed", "resume"}  # named in the path, or name it


def digest(**flags: Any) -> str:
    """The hash in the name of the run folder."""
    return run_folder(replace_flags(complete(Config()), flags)).name.removeprefix("seed7-")


@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - NOT_IDENTITY))
def test_a_flag_that_changes_numbers_changes_the_folder(name: str) -> None:
    known = {"network": "resnet50", "dataset": "svhn", "prune_method": "bip", "weights": "none"}
    files = dict.fromkeys(("init_mask", "init_from", "distill"), __file__)
    assert digest(**{name: (known | files).get(name, other(DEFAULTS[name]))}) != digest()


@pytest.mark.parametrize("name", sorted(NOT_IDENTITY - FOLDERS))
def test_a_flag_that_changes_no_number_leaves_the_folder(name: str) -> None:
    config = complete(Config())
    changed = replace_flags(config, {name: other(DEFAULTS[name])})
    assert changed != config and run_folder(changed) == run_folder(config)


@pytest.mark.parametrize("name", ["save_dir", "experiment_name"])
def test_the_place_of_a_run_leaves_its_hash(name: str) -> None:
    assert digest(**{name: "elsewhere"}) == digest()


def test_the_seed_has_a_name_beside_the_hash() -> None:
    assert run_folder(replace_flags(complete(Config()), {"seed": 8})).name == f"seed8-{digest()}"


def test_a_default_that_is_typed_leaves_the_folder() -> None:
    typed = read_config(["--pad_size", "16", "--epochs", "30"])[0]
    assert run_folder(typed) == run_folder(read_config([])[0])


@pytest.mark.parametrize("words", [("--network", "resnet50"), ("--prune_method", "hydra")])
def test_networks_and_methods_have_hashes_of_their_own(words: tuple[str, str]) -> None:
    one, two = (run_folder(read_config(argv)[0]).name for argv in ([], words))
    assert one != two


def make_run(parent: Path, name: str, **flags: Any) -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(DEFAULTS | flags))
    return folder


def test_a_difference_names_old_and_new() -> None:
    assert changes({"epochs": 3, "seed": 1}, {"epochs": 5, "seed": 2}) == ["epochs 3 -> 5"]


def test_lists_of_a_file_equal_tuples_of_the_flags() -> None:
    assert changes(json.loads(json.dumps(DEFAULTS)), DEFAULTS) == []


def test_the_nearest_run_has_the_fewest_other_flags(tmp_path: Path) -> None:
    make_run(tmp_path, "seed7-a", epochs=3, pad_size=8)
    make_run(tmp_path, "seed7-b", epochs=5)
    line = nearest(tmp_path / "seed7-new", DEFAULTS, DEFAULTS)
    assert "seed7-b" in line and line.endswith("epochs 5 -> 30")


def test_a_list_counts_as_one_flag(tmp_path: Path) -> None:
    make_run(tmp_path, "seed7-a", decreasing_step=[0.1, 0.2, 0.3, 0.4])
    make_run(tmp_path, "seed7-b", epochs=5, pad_size=8)
    assert "seed7-a" in nearest(tmp_path / "seed7-new", DEFAULTS, DEFAULTS)


def test_runs_of_other_seeds_are_not_near(tmp_path: Path) -> None:
    make_run(tmp_path, "seed9-a", epochs=5)
    assert nearest(tmp_path / "seed7-new", DEFAULTS, DEFAULTS) is None


def test_the_folder_itself_is_not_near(tmp_path: Path) -> None:
    assert nearest(make_run(tmp_path, "seed7-a", epochs=5), DEFAULTS, DEFAULTS) is None


@pytest.mark.parametrize("inside", [".", "d0.5", "d0.5/state-3.pt"])
def test_a_run_is_resumed_from_its_folder_or_a_path_in_it(tmp_path: Path, inside: str) -> None:
    folder = make_run(tmp_path, "seed7-a")
    assert resumed_folder(str(folder / inside), DEFAULTS, DEFAULTS) == folder


def test_a_run_from_before_a_flag_had_its_default(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seed7-a")
    config = json.loads((folder / "config.json").read_text())
    del config["amp"]
    (folder / "config.json").write_text(json.dumps(config))
    assert resumed_folder(str(folder), DEFAULTS, DEFAULTS) == folder
    with pytest.raises(UsageError, match="amp none -> bf16"):
        resumed_folder(str(folder), DEFAULTS | {"amp": "bf16"}, DEFAULTS)



def test_resuming_with_other_settings_names_the_difference(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seed7-a", epochs=5)
    with pytest.raises(UsageError, match="epochs 5 -> 30"):
        resumed_folder(str(folder), DEFAULTS, DEFAULTS)


def test_resuming_with_another_seed_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seed9-a", seed=9)
    with pytest.raises(UsageError, match="seed 9 -> 7"):
        resumed_folder(str(folder), DEFAULTS, DEFAULTS)


def test_resuming_elsewhere_may_change_workers(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seed7-a", workers=5)
    assert resumed_folder(str(folder), DEFAULTS, DEFAULTS) == folder


def test_resuming_where_nothing_ran_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VPNsError, match="no run folder there"):
        resumed_folder(str(tmp_path), DEFAULTS, DEFAULTS)


def test_setting_aside_deletes_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        folder = make_run(tmp_path, "seed7-a")
        set_aside(folder)
    kept = sorted(path.name for path in tmp_path.iterdir() if (path / "config.json").exists())
    assert kept == ["seed7-a.old1", "seed7-a.old2", "seed7-a.old3"]


def test_there_may_be_nothing_to_set_aside(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "seed7-a") is None


def test_a_run_at_work_is_not_set_aside(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "seed7-a")
    code = (
        "import sys; from pathlib import Path; from runfolder.run import lock\n"
        "held = lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(folder / "run.lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=ROOT, env=environment, **pipes) as holder:
        holder.stdout.readline()
        with pytest.raises(VPNsError, match=f"in use by process {holder.pid}"):
            set_aside(folder)
        holder.communicate()
    assert folder.exists()


def test_a_flag_without_its_value_is_on_in_what_differs() -> None:
    before, now = {"distill": None, "ema": 0.0}, {"distill": "", "ema": 0.0}
    assert changes(before, now) == ["distill None -> on"]
