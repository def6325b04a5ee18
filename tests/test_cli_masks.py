"""Masks as files: fine-tuning under somebody's mask, and from all that goes with it."""

import copy
import shutil

import pytest
import torch
from cli import run
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

from models import NETWORKS, build_network
from models.artifact import masks_of
from models.mask_file import read_mask_file
from pruning.masks import keep_top, kept_count, prunable
from utils.checkpoint import load_model, unpack_tensor
from utils.tensors import read_tensors

QUICK = ["--density_list", "0.2", "--eval_every", 0, "--input_size", 4, "--output_size", 4]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The level of a finished run that moved its prompt."""
    return run(tmp_path_factory.mktemp("run"), *QUICK, "--score_vp_lr", 0.1).folder / "d0.2"


def masks(path):
    return masks_of(*load_model(path))


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_given_mask_is_kept_to_the_end(tmp_path, searched):
    done = run(tmp_path, *QUICK, "--init_mask", searched / "model.safetensors")
    ours = masks(done.folder / "d0.2/model.safetensors")
    assert equal(ours, masks(searched / "model.safetensors"))


def test_a_given_mask_is_not_searched_for(tmp_path, searched):
    done = run(tmp_path, *QUICK, "--init_mask", searched / "search.safetensors")
    assert done.result["rows"][0]["passes"] == 2
    assert "search epoch" not in done.out


def test_init_mask_leaves_weights_and_prompt_as_they_were(tmp_path, searched):
    done = run(tmp_path, *QUICK, "--init_mask", searched / "model.safetensors", "--epochs", 0)
    tensors, meta = load_model(done.folder / "d0.2/model.safetensors")
    fresh = build_network("resnet20", "none", seed=7).state_dict()
    kept = masks(searched / "model.safetensors")["conv1.weight"]
    assert torch.equal(tensors["conv1.weight"], fresh["conv1.weight"] * kept)
    assert not unpack_tensor(meta["program"]).any()


def test_init_from_takes_weights_statistics_and_prompt(tmp_path, searched):
    source = searched / "search.safetensors"
    done = run(tmp_path, *QUICK, "--init_from", source, "--epochs", 0)
    ours, meta = load_model(done.folder / "d0.2/model.safetensors")
    theirs, their_meta = load_model(source)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert unpack_tensor(meta["program"]).any() and meta["program"] == their_meta["program"]


def test_a_bare_init_from_takes_all_from_the_file_of_the_mask(tmp_path, searched):
    source = searched / "search.safetensors"
    done = run(tmp_path, *QUICK, "--init_mask", source, "--init_from", "--epochs", 0)
    ours = load_file(done.folder / "d0.2/model.safetensors")
    assert all(torch.equal(ours[name], value) for name, value in load_file(source).items())


def test_another_density_is_refused_with_the_right_one(tmp_path, searched):
    flags = [*QUICK, "--density_list", "0.3", "--init_mask", searched / "model.safetensors"]
    done = run(tmp_path, *flags)
    assert done.code == 2 and "--density_list 0.2" in done.error


def test_a_mask_of_another_network_is_refused(tmp_path, searched):
    words = ["--network", "resnet18", "--input_size", 32, "--output_size", 32]
    done = run(tmp_path, *QUICK, *words, "--init_mask", searched / "model.safetensors")
    assert done.code == 1 and "do not fit the network" in done.error


@pytest.fixture(scope="module")
def network():
    return build_network("resnet20", "none", seed=7)


def layer_scores(network):
    draw = torch.Generator().manual_seed(0)
    weights = prunable(network).items()
    return {name: torch.randn(weight.shape, generator=draw) for name, weight in weights}


def stored(scores):
    """Scores under the keys of the authors' files."""
    return {f"{name.removesuffix('.weight')}.popup_scores": s for name, s in scores.items()}


def test_weight_mask_files_of_torch_are_read(tmp_path, network):
    kept = keep_top({n: s.abs() for n, s in layer_scores(network).items()}, 0.2)
    state = network.state_dict()
    for name, mask in kept.items():
        state[f"{name}_orig"] = state.pop(name)
        state[f"{name}_mask"] = mask.float()
    path = tmp_path / "pruned.pth"
    torch.save({"state_dict": state}, path)
    done = run(tmp_path, *QUICK, "--init_from", path, "--epochs", 0)
    tensors = load_file(done.folder / "d0.2/model.safetensors")
    assert equal(masks(done.folder / "d0.2/model.safetensors"), kept)
    assert torch.equal(tensors["fc.weight"], network.fc.weight * kept["fc.weight"])


def pruned(network, share=0.8):
    """A copy that torch.nn.utils.prune has pruned over all layers together."""
    network = copy.deepcopy(network)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    prune.global_unstructured([(m, "weight") for m in layers], prune.L1Unstructured, amount=share)
    return network, layers


@pytest.mark.parametrize("way", ["masks", "DataParallel", "removed", "removed, wrapped"])
def test_what_torch_has_pruned_is_a_mask_without_a_word_of_density(tmp_path, network, way):
    other, layers = pruned(network)
    kept = sum(int(m.weight.count_nonzero()) for m in layers)
    if "removed" in way:
        for layer in layers:
            prune.remove(layer, "weight")
    wrapped = nn.DataParallel(other) if way in ("DataParallel", "removed, wrapped") else other
    torch.save({"state_dict": wrapped.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    done = run(tmp_path / "runs", *QUICK[2:], "--init_mask", tmp_path / "w.pth", "--epochs", 0)
    (row,) = done.result["rows"]
    assert row["kept"] == kept and f"keeps {kept:,} of 268,336 weights" in done.out
    tensors, meta = load_model(done.folder / f"d{row['density']}/model.safetensors")
    assert int(masks_of(tensors, meta)["fc.weight"].sum()) == int(layers[-1].weight.count_nonzero())


def test_layers_that_torch_has_not_pruned_are_kept_whole(tmp_path, network):
    other = copy.deepcopy(network)
    prune.l1_unstructured(other.conv1, "weight", 0.5)
    prune.l1_unstructured(other.fc, "bias", 0.5)
    state = {n.replace("fc.", "linear."): t for n, t in other.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    done = run(tmp_path / "runs", *QUICK[2:], "--init_mask", tmp_path / "w.pth", "--epochs", 0)
    assert done.result["rows"][0]["kept"] == 268_336 - 216


def test_a_density_that_is_a_rounding_away_is_taken_and_told(tmp_path, network):
    kept = keep_top({n: s.abs() for n, s in layer_scores(network).items()}, 0.2)
    kept["fc.weight"].view(-1)[kept["fc.weight"].view(-1).nonzero()[0]] = False
    torch.save(network.state_dict() | {f"{n}_mask": m for n, m in kept.items()}, tmp_path / "w.pth")
    done = run(tmp_path / "runs", *QUICK, "--init_mask", tmp_path / "w.pth", "--epochs", 0)
    (row,) = done.result["rows"]
    assert row["kept"] == kept_count(kept) == 268336 - int(0.8 * 268336) - 1
    assert "-1 of density 0.2" in done.out


def test_popup_scores_are_read_at_the_density_asked_for(tmp_path, network):
    scores = layer_scores(network)
    path = tmp_path / "scores.pth"
    torch.save(network.state_dict() | stored(scores), path)
    done = run(tmp_path, *QUICK, "--init_mask", path)
    ours = masks(done.folder / "d0.2/model.safetensors")
    assert equal(ours, keep_top({n: s.abs() for n, s in scores.items()}, 0.2))


def test_popup_scores_without_one_density_are_refused(tmp_path, network):
    path = tmp_path / "scores.pth"
    torch.save(stored(layer_scores(network)), path)
    done = run(tmp_path, *QUICK, "--density_list", "0.2,0.1", "--init_mask", path)
    assert done.code == 2 and "name their density" in done.error


def test_a_file_without_a_mask_is_refused(tmp_path, network):
    path = tmp_path / "plain.pth"
    torch.save(network.state_dict(), path)
    done = run(tmp_path, *QUICK, "--init_mask", path)
    assert done.code == 1 and "holds no mask" in done.error


def absent(tmp_path):
    return ["--dataset", "cifar10", "--data", tmp_path / "none", "--no_download"]


@pytest.mark.parametrize("flag", ["--init_mask", "--init_from"])
def test_a_refused_file_is_noticed_before_the_data_are_looked_for(tmp_path, network, flag):
    path = tmp_path / "plain.pth"
    torch.save(network.state_dict(), path)
    done = run(tmp_path / "result", *QUICK, *absent(tmp_path), flag, path)
    assert done.code == 1 and "holds no mask" in done.error
    assert not (tmp_path / "result").exists()


def test_another_density_is_noticed_before_the_data_are_looked_for(tmp_path, searched):
    words = [*absent(tmp_path), "--density_list", "0.2,0.1"]
    done = run(tmp_path, *QUICK, *words, "--init_mask", searched / "model.safetensors")
    assert done.code == 2 and "--density_list 0.2" in done.error


def test_a_mask_file_that_was_used_may_go(tmp_path, searched):
    path = shutil.copy(searched / "model.safetensors", tmp_path)
    folder = run(tmp_path / "run", *QUICK, "--init_mask", path).folder
    (tmp_path / "model.safetensors").unlink()
    again = run(tmp_path / "run", *QUICK, "--init_mask", path, "--resume", folder)
    assert again.folder == folder


def test_a_file_to_start_from_that_was_used_may_go(tmp_path, searched):
    path = shutil.copy(searched / "model.safetensors", tmp_path)
    folder = run(tmp_path / "run", *QUICK, "--init_from", path).folder
    (folder / "d0.2/model.safetensors").unlink()
    (tmp_path / "model.safetensors").unlink()
    again = run(tmp_path / "run", *QUICK, "--init_from", path, "--resume", folder)
    assert again.folder == folder


def test_a_mask_file_of_ours_says_how_many_it_keeps(searched):
    row = NETWORKS["resnet20"]
    file = read_mask_file(searched / "search.safetensors", row, prunable, None)
    assert kept_count(file.masks) == 268336 - int(0.8 * 268336)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pruned_weights_are_plus_zero_in_every_saved_form(tmp_path, optimizer):
    moving = ["--weight_optimizer", optimizer, "--weight_weight_decay", 0.01, "--keep_states"]
    done = run(tmp_path, *QUICK, "--epochs", 3, *moving)
    level, (row,) = done.folder / "d0.2", done.result["rows"]
    kept = masks(level / "model.safetensors")
    assert row["kept"] == kept_count(kept) == 268336 - int(0.8 * 268336)
    states = [read_tensors(path)["tensors"] for path in level.glob("state-*.pt")]
    assert len(states) == 2
    models = [load_file(level / f"{name}.safetensors") for name in ("search", "model")]
    for name, mask in kept.items():
        weights = [model[name] for model in models]
        weights += [state[f"network.{name}"] for state in states]
        pruned = torch.stack(weights)[:, ~mask]
        assert not pruned.any() and not pruned.signbit().any(), name


def test_a_file_to_start_from_brings_its_own_head_and_no_weights_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    other, layers = pruned(build_network("resnet18", "none", 12))
    torch.save(other.state_dict(), tmp_path / "w.pth")
    words = ["--network", "resnet18", "--weights", "imagenet", "--density_list", "0.2"]
    sizes = ["--input_size", 32, "--output_size", 32, "--epochs", 0, "--train_images", 8]
    done = run(tmp_path / "runs", *words, *sizes, "--init_from", tmp_path / "w.pth")
    (row,) = done.result["rows"]
    assert row["kept"] == sum(int(layer.weight.count_nonzero()) for layer in layers)
    assert not (tmp_path / "hub").exists()
