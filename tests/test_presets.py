"""`--preset paper`: rows of the paper's launchers, and who wins."""

import pytest

from program.plan import origins
from program.presets import paper_preset
from program.settings import read_config
from utils.config import flatten

RESNET = ("resnet18", "cifar100")


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        ((*RESNET, "vpns", True), {"epochs": 30, "weight_optimizer": "sgd", "weight_lr": 0.01,
                                   "score_optimizer": "adam", "score_lr": 1e-4,
                                   "score_vp_scheduler": "multistep"}),
        ((*RESNET, "hydra", False), {"epochs": 60, "score_optimizer": "sgd", "score_lr": 0.01}),
        ((*RESNET, "bip", False), {"epochs": 60, "score_optimizer": "adam", "score_lr": 1e-4}),
        ((*RESNET, "omp", False), {"epochs": 120, "weight_lr": 0.01}),
        ((*RESNET, "omp", True), {"epochs": 60, "weight_vp_optimizer": "adam"}),
        ((*RESNET, "lth", True), {"epochs": 60, "score_vp_lr": 1e-3}),
        (("resnet18", "flowers102", "vpns", True), {"weight_optimizer": "adam", "score_lr": 1e-3}),
        (("resnet18", "oxfordpets", "vpns", True), {"score_optimizer": "sgd", "score_lr": 0.05}),
        (("resnet18", "oxfordpets", "omp", False), {"weight_lr": 0.001}),
        (("resnet18", "stanfordcars", "snip", False), {"weight_optimizer": "adam"}),
        (("resnet18", "stanfordcars", "hydra", False), {"weight_lr": 1e-3, "score_lr": 1e-4}),
        (("resnet50", "tiny_imagenet", "vpns", True), {"weight_lr": 1e-4, "score_lr": 1e-4}),
        (("vgg16", "tiny_imagenet", "vpns", True), {"epochs": 20, "batch_size": 128}),
        (("vgg16_bn", "cifar100", "hydra", False), {"epochs": 40, "score_optimizer": "adam"}),
        (("resnet18", "imagenet", "hydra", False), {"epochs": 20, "label_mapping_mode": "none"}),
    ],
)  # fmt: skip
def test_cells_are_those_of_the_papers_launchers(cell, values):
    preset = paper_preset(*cell)
    assert {name: preset[name] for name in values} == values


@pytest.mark.parametrize(
    ("dataset", "levels"), [("cifar100", 13), ("dtd", 19), ("oxfordpets", 10)]
)
def test_lth_has_the_papers_densities(dataset, levels):
    assert len(paper_preset("resnet18", dataset, "lth", False)["density_list"]) == levels


@pytest.mark.parametrize("method", ["vpns", "hydra", "bip", "omp", "lth", "dense"])
def test_every_value_is_a_flag(method):
    flags = flatten(read_config([])[0])
    assert paper_preset("vgg16", "tiny_imagenet", method, True).keys() <= flags.keys()


def test_typed_flags_win_over_the_preset_and_both_over_defaults():
    words = ["--preset", "paper", "--prune_method", "hydra", "--epochs", "5"]
    config, typed = read_config(words)
    found = origins(config, typed)
    assert (config.method.epochs, config.score.lr) == (5, 0.01)
    assert (found["epochs"], found["score_lr"], found["momentum"]) == ("typed", "preset", "default")
    assert found["batch_size"] == "registry"


def test_without_a_preset_nothing_comes_from_one():
    config, typed = read_config(["--prune_method", "hydra"])
    assert "preset" not in origins(config, typed).values() and config.method.epochs == 30


def test_the_preset_for_transformers_is_adamw_with_a_warm_up_and_typed_flags_win():
    config, typed = read_config(["--preset", "vit", "--weight_lr", "0.5"])
    found = origins(config, typed)
    assert (config.weight.optimizer, config.schedule.warmup_epochs) == ("adamw", 2)
    assert config.optim("weight").by_step and config.recipe.clip_grad == 1
    assert (found["weight_lr"], found["label_smoothing"]) == ("typed", "preset")
