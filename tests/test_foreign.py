"""The authors' files, made here from the description of their format (METHODS section 7)."""

import decimal
import math
from collections import Counter

import pytest
import torch
from torch import nn

from models.backbones import NETWORKS, build_network
from models.foreign import read_authors, recognise
from models.foreign_prompt import read_prompt, region_kind
from models.rows import Backbone
from utils.errors import UsageError, VPNsError
from utils.tensors import read_tensors, understood

SIDE = 16


def layers_of(network):
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def authors_mask(scores, density):
    """Their rule, word for word: the k-th smallest of all |s|; strictly above it is kept."""
    sizes = torch.cat([s.abs().flatten() for s in scores.values()])
    k = int((1 - density) * len(sizes))
    tau = torch.kthvalue(sizes, k).values if k else -1.0
    return {name: s.abs() > tau for name, s in scores.items()}


def scores_of(layers):
    scores = {}
    for name, layer in layers.items():
        start = layer.weight.detach()
        fan_in = start[0].numel()
        scores[name] = math.sqrt(6 / fan_in) * start / start.abs().max()
        scores[name] += 0.01 * torch.randn_like(start)
    return scores


def weights_of(network):
    """Which weights can be pruned, the rule that the program hands to the reader."""
    return {f"{name}.weight": layer.weight for name, layer in layers_of(network).items()}


def checkpoint(name="resnet20"):
    """A `<level>best.pth`, with the keys in the order of their layers' registration."""
    torch.manual_seed(0)
    network = build_network(name, "none")
    layers = layers_of(network)
    scores = scores_of(layers)
    state, start = {}, {}
    for key, value in network.state_dict().items():
        layer, _, leaf = key.rpartition(".")
        start[key], state[key] = value.clone(), value + 1 if value.ndim < 2 else 1.1 * value
        last = leaf == "bias" if f"{layer}.bias" in network.state_dict() else leaf == "weight"
        if layer in layers and last:
            state[f"{layer}.popup_scores"] = start[f"{layer}.popup_scores"] = scores[layer]
    side, classes = NETWORKS[name].output_size, 5
    mask = torch.zeros(3, side, side)
    mask[:, :2] = mask[:, -2:] = mask[:, :, :2] = mask[:, :, -2:] = 1
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]}
    return {
        "state_dict": state,
        "init_weight": start,
        "weight_optimizer": momentum,
        "weight_scheduler": {"milestones": Counter({15: 1}), "last_epoch": 30},
        "weight_vp_optimizer": momentum,
        "weight_vp_scheduler": {"last_epoch": 30},
        "score_optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "score_scheduler": {"last_epoch": 0},
        "visual_prompt": {"program": torch.rand(3, side, side), "mask": mask},
        "mapping_sequence": torch.randperm(NETWORKS[name].source_classes)[:classes],
        "val_best_acc": 0.9,
        "ckpt_test_acc": 0.8316,
        "all_results": {"train_acc": [0.5], "val_acc": [0.8316], "no_train_acc": 0.1},
        "epoch": 29,
        "state": 0,
    }


def scores_in(file):
    end = ".popup_scores"
    return {k.removesuffix(end): v for k, v in file["state_dict"].items() if k.endswith(end)}


def kept_by(found):
    return sum(int(mask.sum()) for mask in found.masks.values())


def by_weight(tensors):
    """By the name of the parameter instead of the layer."""
    return {f"{name}.weight": tensor for name, tensor in tensors.items()}


def without_scores(file):
    state = file["state_dict"]
    return {key: value for key, value in state.items() if not key.endswith("popup_scores")}


@pytest.fixture(scope="module")
def pristine():
    return checkpoint()


@pytest.fixture
def file(pristine):
    """A checkpoint that a test may change."""
    return {k: dict(v) if isinstance(v, dict) else v for k, v in pristine.items()}


def read_file(path, density, rule=weights_of):
    file = read_tensors(path)
    with understood(path):
        return read_authors(path, rule, density, file)


@pytest.fixture
def read(tmp_path):
    """Write a checkpoint and read it as a user's file."""

    def write_and_read(content, density=0.4):
        torch.save(content, tmp_path / "0best.pth")
        return read_file(tmp_path / "0best.pth", density)

    return write_and_read


@pytest.fixture
def refuses(read):
    def check(content, words, kind=VPNsError, density=0.4):
        with pytest.raises(kind, match=words) as error:
            read(content, density)
        assert "0best.pth" in str(error.value) and "\n" not in str(error.value)

    return check


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    content = checkpoint("resnet18")
    path = tmp_path_factory.mktemp("authors") / "1best.pth"
    torch.save(content, path)
    yield content, read_file(path, 0.4)
    path.unlink()


def test_a_resnet18_file_has_143_keys_and_becomes_122(resnet18):
    content, found = resnet18
    assert len(content["state_dict"]) == 143
    assert (found.network, len(found.state_dict)) == ("resnet18", 122)


def test_a_resnet18_file_loads_strictly_into_torchvision(resnet18):
    network = build_network("resnet18", "none")
    network.load_state_dict(resnet18[1].state_dict, strict=True)
    assert torch.equal(network.bn1.weight, resnet18[0]["state_dict"]["bn1.weight"])


def test_a_resnet18_file_keeps_the_number_that_its_density_says(resnet18):
    _, found = resnet18
    assert found.notes == () and sum(mask.numel() for mask in found.masks.values()) == 11_678_912
    assert kept_by(found) == 11_678_912 - 7_007_347


def test_the_masks_are_those_of_the_authors_rule(file, read):
    found = read(file, 0.4)
    expected = by_weight(authors_mask(scores_in(file), 0.4))
    assert found.masks.keys() == expected.keys()
    assert all(torch.equal(found.masks[name], expected[name]) for name in expected)


def test_the_folded_network_computes_what_the_masked_layers_compute(file, read):
    network, folded = build_network("resnet20", "none").eval(), read(file, 0.4)
    network.load_state_dict(without_scores(file))
    for name, mask in authors_mask(scores_in(file), 0.4).items():
        network.get_submodule(name).weight.data.mul_(mask.float())
    x = torch.rand(2, 3, SIDE, SIDE)
    expected = network(x)
    network.load_state_dict(folded.state_dict)
    assert torch.equal(network(x), expected)


def test_pruned_weights_are_positive_zeros(file, read):
    found = read(file, 0.4)
    for name, mask in found.masks.items():
        pruned = found.state_dict[name][~mask]
        assert not pruned.any() and not pruned.signbit().any()


def test_the_rest_of_the_file_is_reported(file, read):
    found = read(file, 0.4)
    assert torch.equal(found.label_map, file["mapping_sequence"])
    assert torch.equal(found.prompt.program, file["visual_prompt"]["program"])
    assert (found.prompt.kind, found.prompt.size) == ("pad", 2)
    assert (found.claimed_accuracy, found.notes) == (0.8316, ())


def test_ties_at_the_threshold_are_all_pruned_and_counted(file, read):
    scores = file["state_dict"]["conv1.popup_scores"]
    file["state_dict"]["conv1.popup_scores"] = torch.full_like(scores, 0.5)
    for name in scores_in(file).keys() - {"conv1"}:
        key = f"{name}.popup_scores"
        file["state_dict"][key] = torch.ones_like(file["state_dict"][key])
    total = sum(s.numel() for s in scores_in(file).values())
    found = read(file, 1 - 10.5 / total)
    kept = total - scores.numel()
    assert kept_by(found) == kept
    assert found.notes[-1].startswith(f"keeps {kept} of {total}, not {total - 10}: ties")


def test_density_1_keeps_everything(file, read):
    assert kept_by(read(file, 1.0)) == 268_336


def test_the_density_of_scores_must_be_given(file, refuses):
    refuses(file, "do not store their density: name it with --density$", UsageError, None)


def test_the_rule_of_what_is_pruned_is_the_callers(file, tmp_path):
    torch.save(file, tmp_path / "0best.pth")

    def convolutions(network):
        return {name: weight for name, weight in weights_of(network).items() if weight.ndim == 4}

    with pytest.raises(VPNsError, match="scores for fc.weight, which cannot be pruned"):
        read_file(tmp_path / "0best.pth", 0.4, convolutions)


def test_masks_stored_as_weight_mask_are_read(file, read):
    masks = authors_mask(scores_in(file), 0.4)
    state = without_scores(file)
    for name, mask in masks.items():
        state[f"{name}.weight_orig"] = state.pop(f"{name}.weight")
        state[f"{name}.weight_mask"] = mask.float()
    found = read({**file, "state_dict": state, "mask": None, "visual_prompt": None}, None)
    assert all(torch.equal(found.masks[f"{name}.weight"], masks[name]) for name in masks)
    assert found.prompt is None


def test_masks_stored_in_a_dict_are_read(file, read):
    masks = by_weight(authors_mask(scores_in(file), 0.3))
    stored = {name: mask.float() for name, mask in masks.items()}
    found = read({**file, "state_dict": without_scores(file), "mask": stored}, 0.4)
    assert all(torch.equal(found.masks[name], masks[name]) for name in masks)
    assert found.notes[0].endswith("its masks are taken as they are")


def test_a_stored_mask_must_be_of_0_and_1(file, refuses):
    masks = by_weight(scores_in(file))
    refuses({**file, "state_dict": without_scores(file), "mask": masks}, "other than 0 and 1")


def test_a_file_without_scores_and_masks_is_refused(file, refuses):
    refuses({**file, "state_dict": without_scores(file)}, "neither popup_scores nor masks")


def test_a_structured_file_is_refused(file, refuses):
    for name, score in scores_in(file).items():
        if score.ndim == 4:
            file["state_dict"][f"{name}.popup_scores"] = torch.rand(len(score), 1, 1, 1)
    del file["state_dict"]["fc.popup_scores"]
    refuses(file, "structured")


def test_a_layer_without_scores_is_named(file, refuses):
    del file["state_dict"]["layer2.0.conv1.popup_scores"]
    refuses(file, "no scores for layer2.0.conv1.weight")


def test_scores_for_a_layer_that_is_not_prunable_are_named(file, refuses):
    file["state_dict"]["bn1.popup_scores"] = torch.zeros(16)
    refuses(file, "scores for bn1.weight, which cannot be pruned")


def test_scores_of_another_shape_are_named(file, refuses):
    file["state_dict"]["fc.popup_scores"] = torch.zeros(10, 63)
    refuses(file, r"scores of fc.weight have the shape \(10, 63\) instead of \(10, 64\)")


def test_scores_that_are_not_finite_are_named(file, refuses):
    scores = file["state_dict"]["fc.popup_scores"].clone()
    scores[0, 0] = math.nan
    file["state_dict"]["fc.popup_scores"] = scores
    refuses(file, "scores of fc.weight are not finite")


def test_a_missing_weight_is_named(file, refuses):
    del file["state_dict"]["bn1.bias"]
    refuses(file, "nearest to resnet20, but does not fit: missing bn1.bias")


def test_a_weight_of_another_shape_is_named(file, refuses):
    file["state_dict"]["fc.bias"] = torch.zeros(9)
    refuses(file, r"fc.bias \(9,\) instead of \(10,\)")


def test_another_network_is_refused_with_the_known_names(file, refuses):
    file["state_dict"] = {"blocks.0.weight": torch.zeros(2, 2)}
    refuses(file, "not recognised: it is none of resnet18, ")


def test_a_file_of_another_program_is_refused(refuses):
    refuses({"mapping_sequence": 3}, "no tensors under 'state_dict'")


def test_a_pickled_class_is_refused(file, refuses):
    refuses({**file, "one": decimal.Decimal(1)}, r"would call decimal\.Decimal")


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (None, "no mapping_sequence"),
        ([1, 2], "no mapping_sequence"),
        (torch.tensor([1.0]), "not int64"),
        (torch.tensor([[1]]), "not int64"),
        (torch.tensor([], dtype=torch.int64), "not int64"),
        (torch.tensor([0, 10]), r"outside 0\.\.9"),
        (torch.tensor([-1, 2]), r"outside 0\.\.9"),
        (torch.tensor([3, 3]), "one source class to several"),
    ],
)
def test_a_label_map_that_cannot_be_is_refused(file, refuses, mapping, words):
    refuses({**file, "mapping_sequence": mapping}, words)


@pytest.mark.parametrize(
    ("claim", "expected"),
    [(0.5, 0.5), (torch.tensor(0.5), 0.5), (math.nan, None), (83.1, None), ("x", None)],
)
def test_a_claimed_accuracy_is_a_share_or_nothing(file, read, claim, expected):
    assert read({**file, "ckpt_test_acc": claim}, 0.4).claimed_accuracy == expected


def test_the_claimed_accuracy_of_a_search_file_lies_deeper(file, read):
    del file["ckpt_test_acc"]
    file["all_results"]["ckpt_test_acc"] = 0.25
    assert read(file, 0.4).claimed_accuracy == 0.25


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_recognised_by_its_keys(name):
    with torch.device("meta"):
        state = build_network(name, "none").state_dict()
    assert recognise(dict(state), [])[0] == name


@pytest.mark.parametrize(("name", "convolutions"), [("vgg16", 13), ("vgg16_bn", 13)])
def test_a_vgg_without_convolution_biases_gets_zeros_and_a_note(name, convolutions):
    with torch.device("meta"):
        network = build_network(name, "none")
    convs = [n for n, m in layers_of(network).items() if isinstance(m, nn.Conv2d)]
    biases = {f"{n}.bias" for n in convs}
    state = {k: v for k, v in network.state_dict().items() if k not in biases}
    notes = []
    found, filled = recognise(state, notes)
    assert (found, len(biases)) == (name, convolutions)
    assert filled.keys() == network.state_dict().keys()
    assert not any(filled[key].any() for key in biases)
    assert notes == ["trained without the biases of the convolutions: they are zero here"]


def test_a_vgg_without_one_bias_only_does_not_fit():
    with torch.device("meta"):
        state = dict(build_network("vgg16", "none").state_dict())
    del state["features.0.bias"]
    with pytest.raises(VPNsError, match=r"missing features\.0\.bias"):
        recognise(state, [])


def test_a_network_without_convolution_biases_is_read_from_end_to_end(monkeypatch, read):
    def build(classes):
        convs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 40, 3))
        return nn.Sequential(convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, classes))

    monkeypatch.setitem(NETWORKS, "small", Backbone(build, "3", "none", "", 10, SIDE, SIDE, 2))
    content = checkpoint("small")
    for key in ("0.0", "0.2"):
        del content["state_dict"][f"{key}.bias"]
    found = read(content)
    assert found.network == "small" and len(found.notes) == 1
    build_network("small", "none").load_state_dict(found.state_dict, strict=True)


def square(start, stop):
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[start:stop, start:stop] = True
    return region


@pytest.mark.parametrize(
    ("region", "kind"),
    [
        (~square(2, 14), ("pad", 2)),
        (~square(7, 9), ("pad", 7)),
        (torch.ones(SIDE, SIDE, dtype=torch.bool), ("pad", 8)),
        (torch.zeros(SIDE, SIDE, dtype=torch.bool), ("pad", 0)),
        (square(0, 11), ("fix", 11)),
        (square(0, 1), ("fix", 1)),
        (~square(3, 14), ("expand", 11)),
        (~square(1, 16), ("expand", 15)),
    ],
)
def test_the_region_shows_the_kind_of_prompt(region, kind):
    assert region_kind(region) == kind


@pytest.mark.parametrize("region", [square(4, 8), ~square(0, 14), ~square(1, 14)])
def test_a_region_of_no_known_kind_is_refused(region):
    with pytest.raises(VPNsError, match="neither a frame, a corner square nor a ring"):
        region_kind(region)


def test_a_prompt_without_a_mask_is_random():
    found = read_prompt({"program": torch.zeros(3, SIDE, SIDE)})
    assert (found.kind, found.size) == ("random", None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": torch.zeros(1)}, "not a program and a mask"),
        ({"program": torch.zeros(3, 4, 5)}, r"\(3, 4, 5\), not \(3, H, H\)"),
        ({"program": torch.full((3, SIDE, SIDE), math.inf)}, "not finite"),
        ({"mask": torch.full((3, SIDE, SIDE), 0.5)}, "not one region"),
        ({"mask": torch.ones(3, 4, 4)}, "not one region"),
        ({"mask": torch.ones(SIDE)}, "not one region"),
    ],
)
def test_a_prompt_of_another_layout_is_refused(change, words):
    state = {"program": torch.zeros(3, SIDE, SIDE), "mask": torch.ones(3, SIDE, SIDE)}
    with pytest.raises(VPNsError, match=words):
        read_prompt({**state, **change})
