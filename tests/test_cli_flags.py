"""The flags: which there are, what they accept, and that each of them has an effect."""

import io
import json
from contextlib import redirect_stdout

import pytest
from cli import call

import main_vpns
from data import SPECS
from program.settings import Config, read_config
from pruning import METHODS
from utils.config import flags_of, flatten

FROZEN = {
    "save_dir", "experiment_name", "seed", "device", "gpu", "resume", "keep_states", "eval_every",
    "save_every", "save_minutes",
    "warmup_epochs", "schedule_by", "label_smoothing", "clip_grad", "accumulate",
    "config", "sparsity", "details", "wandb", "push_to", "zoo", "augment", "mixup", "cutmix",
    "print_freq", "dry_run", "debug", "evaluate", "density", "network", "weights",
    "dataset", "data", "input_size", "batch_size", "workers", "val_fraction", "train_images",
    "download", "cache_gb", "bad_images", "check_data",
    "amp", "channels_last", "compile", "tf32", "full_float32", "deterministic", "sync_bn",
    "classes_by_position", "predict", "export", "pack", "profile", "model", "to", "clean", "half",
    "cuda_graphs", "weights_key", "test_fraction", "normalisation",
    "prompt_method", "output_size", "pad_size", "mask_size",
    "prune_method", "prune_mode", "density_list", "epochs", "label_mapping_mode", "preset",
    "init_mask", "init_from", "post_prompt", "momentum", "decreasing_step", "min_layer_density",
    "granularity", "compact", "distill", "distill_share", "distill_temperature", "ema",
    "density_schedule", "from_dense",
    *(f"{group}_{leaf}" for group in ("weight", "weight_vp", "score", "score_vp")
      for leaf in ("optimizer", "lr", "weight_decay", "scheduler")),
}  # fmt: skip
AUTHORS = (
    "--experiment_name vpns --dataset cifar100 --network resnet18 --prune_method vpns "
    "--density_list 1,0.6,0.5,0.4,0.3,0.2,0.1 --weight_optimizer sgd --weight_lr 0.01 "
    "--weight_vp_optimizer sgd --weight_vp_lr 0.01 --score_optimizer adam --score_lr 0.0001 "
    "--score_vp_optimizer adam --score_vp_lr 0.0001 --gpu 0 --epochs 30 --seed 7"
)
NINE = ("cifar10", "cifar100", "flowers102", "dtd", "food101", "oxfordpets", "stanfordcars",
        "tiny_imagenet", "imagenet")  # fmt: skip


def dry(*words):
    """The plan that --dry_run prints for a command line."""
    done = call(*words, "--dry_run")
    assert done.code == 0 and not done.err, done.err
    return json.loads(done.out)


# Which there are


def test_list_of_flags_is_frozen():
    assert set(flags_of(Config())) == FROZEN


def test_every_flag_explains_itself():
    assert all(about["help"] and about["group"] for about in flags_of(Config()).values())


@pytest.fixture(scope="module")
def help_text():
    done = call("--help")
    assert done.code == 0
    return done.out


def test_help_lists_every_flag(help_text):
    shown = {word.strip("[],") for word in help_text.split()}
    assert {f"--{name}" for name in FROZEN} <= shown


def test_help_names_the_negative_of_a_flag_that_is_on(help_text):
    assert "(default: yes; --no_download for no)" in " ".join(help_text.split())


def test_help_is_grouped(help_text):
    titles = ("run:", "network:", "data:", "prompt:", "method:", "scores, in the search:")
    assert all(f"\n{title}" in help_text for title in titles)


def test_help_shows_defaults(help_text):
    assert "(default: 30)" in help_text and "(default: 1,0.6,0.5,0.4,0.3,0.2,0.1)" in help_text


def test_help_defines_sparsity_once(help_text):
    assert help_text.count("Sparsity is") == 1


# What is accepted


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "vgg"])
@pytest.mark.parametrize("dataset", NINE)
def test_authors_command_line_is_accepted(network, dataset):
    plan = dry(*AUTHORS.split(), "--network", network, "--dataset", dataset)
    assert plan["config"]["dataset"] == dataset
    assert [level["density"] for level in plan["levels"]] == [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_authors_command_line_resolves_to_their_settings():
    config = dry(*AUTHORS.split())["config"]
    for name, value in flatten(Config()).items():
        if name.endswith(("_lr", "_optimizer", "_scheduler", "_weight_decay")):
            assert config[name] == value
    sizes = ("input_size", "output_size", "pad_size", "mask_size", "batch_size")
    assert [config[name] for name in sizes] == [224, 224, 16, 115, 256]
    assert config["prune_mode"] == "score+vp_weight+vp" and config["weights"] == "imagenet"


def test_authors_command_line_with_hyphens_means_the_same():
    hyphens = ("-" if word.startswith("--") else "" for word in AUTHORS.split())
    words = [
        "--" + word[2:].replace("_", "-") if hyphen else word
        for word, hyphen in zip(AUTHORS.split(), hyphens, strict=True)
    ]
    assert dry(*words) == dry(*AUTHORS.split())


def test_a_density_listed_twice_is_one_level():
    plan = dry(*AUTHORS.split(), "--density_list", "1,0.6,0.5,0.4,0.3,0.3,0.1")
    assert [level["density"] for level in plan["levels"]] == [0.6, 0.5, 0.4, 0.3, 0.1]


def test_authors_none_is_ours():
    assert dry("--prompt_method", "None")["config"]["prompt_method"] == "none"


def test_alias_becomes_the_name_of_the_network():
    assert dry("--network", "vgg")["config"]["network"] == "vgg16"


RELEASED = """
save_dir out | experiment_name other | data somewhere | network resnet50 | dataset dtd | seed 9 |
gpu 1 | workers 4 | print_freq 100 | input_size 192 | output_size 256 | pad_size 32 |
mask_size 100 | prompt_method fix | label_mapping_mode ilm | prune_method vpns |
prune_mode score+vp_weight+vp | epochs 2 | density_list 1,0.5 | batch_size 32 | momentum 0.8 |
decreasing_step 0.4,0.8 | weight_optimizer adam | weight_lr 0.1 | weight_weight_decay 0.1 |
weight_scheduler multistep | weight_vp_optimizer adam | weight_vp_lr 0.1 |
weight_vp_weight_decay 0.1 | weight_vp_scheduler multistep | score_optimizer sgd |
score_lr 0.1 | score_weight_decay 0.1 | score_scheduler multistep | score_vp_optimizer sgd |
score_vp_lr 0.1 | score_vp_weight_decay 0.1 | score_vp_scheduler multistep
"""


@pytest.mark.parametrize("flag", [flag.split() for flag in RELEASED.split("|")])
def test_every_flag_of_the_released_code_is_accepted(flag):
    name, value = flag
    shown = dry(f"--{name}", value)["config"][name]
    text = ",".join(f"{v:g}" for v in shown) if isinstance(shown, list) else str(shown)
    assert text == value


@pytest.mark.parametrize("text", ["0.5,0.72", "[0.5, 0.72]", "(0.5,0.72)"])
def test_steps_are_written_in_any_bracket(text):
    assert dry("--decreasing_step", text)["config"]["decreasing_step"] == [0.5, 0.72]


# The plan


def test_plan_has_the_levels_to_the_last_weight():
    levels = dry("--density_list", "1,0.2,0.1")["levels"]
    assert [level["kept"] for level in levels] == [2_335_783, 1_167_892]
    assert [level["sparsity"] for level in levels] == [0.8, 0.9]


def test_plan_counts_passes_and_prompt_values():
    plan = dry("--density_list", "0.2,0.1", "--epochs", 3)
    assert plan["passes"] == 24 and plan["prompt_values"] == 12 * 16 * (224 - 16)


def test_plan_names_the_folder_of_the_run(tmp_path):
    plan = dry("--dataset", "digits", "--network", "resnet20", "--save_dir", tmp_path)
    assert plan["run"].startswith(f"{tmp_path}/vpns/resnet20-digits-vpns/seed7-")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", ["cifar100", "imagefolder"])
def test_plan_of_every_method_needs_no_data(method, dataset):
    plan = dry("--prune_method", method, "--dataset", dataset, "--no_download")
    assert plan["config"]["prune_method"] == method and plan["levels"]


@pytest.mark.parametrize("dataset", SPECS)
def test_plan_of_every_dataset_needs_no_data(dataset):
    assert dry("--dataset", dataset)["classes"] == SPECS[dataset].classes


def test_plan_creates_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dry(*AUTHORS.split())
    assert not list(tmp_path.iterdir())


# Effect

OTHER = {
    "device": "cpu", "gpu": "1", "resume": "none", "network": "resnet50", "weights": "none",
    "dataset": "svhn", "prompt_method": "fix", "prune_method": "hydra",
    "prune_mode": "score_weight", "label_mapping_mode": "rlm", "preset": "paper",
    "density_list": "0.3", "decreasing_step": "0.9", "input_size": "100", "output_size": "230",
    "post_prompt": "finetuned", "val_fraction": "0.1", "density": "0.5", "evaluate": "x.pth",
    "momentum": "0.5", "bad_images": "skip", "min_layer_density": "0.05",
    "amp": "bf16", "deterministic": "off", "cuda_graphs": "off", "test_fraction": "0.3",
    "normalisation": "half", "schedule_by": "step", "label_smoothing": "0.1",
    "augment": "rand", "granularity": "channel", "distill_share": "0.9", "ema": "0.99",
    "density_schedule": "cubic",
}  # fmt: skip


def other_words(name):
    """The flag with a value other than its default."""
    value = flatten(Config())[name]
    if isinstance(value, bool):
        return [f"--no_{name}" if value else f"--{name}"]
    if name in OTHER:
        return [f"--{name}", OTHER[name]]
    if name.endswith("_optimizer"):
        return [f"--{name}", "adam" if value == "sgd" else "sgd"]
    return [f"--{name}", "constant" if name.endswith("_scheduler") else "3"]


@pytest.mark.parametrize("name", sorted(FROZEN - {"init_mask", "init_from", "config", "sparsity"}))
def test_every_flag_changes_the_resolved_config(name):
    before, after = (flatten(read_config(words)[0]) for words in ([], other_words(name)))
    assert before[name] != after[name]


def test_program_reads_the_command_line_of_its_process(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["main_vpns.py", "--dry_run", "--save_dir", str(tmp_path)])
    with redirect_stdout(io.StringIO()) as out:
        assert main_vpns.main() == 0
    assert json.loads(out.getvalue())["config"]["save_dir"] == str(tmp_path)
