"""Weights as people's tools save them: containers, prefixes, names of heads, masks, types."""

import argparse
import collections
import copy
import datetime
import pathlib

import numpy as np
import pytest
import torch
from cli import call, run
from conftest import tiny_network
from safetensors.torch import save_file
from test_strangers import CPU, QUICK
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from models.backbones import build_network
from models.containers import find_state
from utils.checkpoint import load_model
from utils.errors import VPNsError

NONE = [*QUICK, "--epochs", 0]


@pytest.fixture(scope="module")
def network():
    return build_network("resnet20", "none", 10, seed=3)


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def trained(network):
    """Some steps of an optimizer, for its state."""
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def lightning(network):
    return {
        "state_dict": prefixed(network.state_dict(), "model."), "epoch": 3, "global_step": 9,
        "pytorch-lightning_version": "2.5.0", "optimizer_states": [trained(network)],
        "hyper_parameters": {"lr": 0.1, "save_dir": pathlib.PosixPath("x")},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    }  # fmt: skip


def renamed(state, old, new):
    return {name.replace(old, new): tensor for name, tensor in state.items()}


WAYS = {
    "plain": lambda n: n.state_dict(),
    "half": lambda n: nn.Module.half(copy.deepcopy(n)).state_dict(),
    "DataParallel": lambda n: nn.DataParallel(n).state_dict(),
    "state_dict": lambda n: {"state_dict": n.state_dict(), "epoch": 3},
    "state_dict of DataParallel": lambda n: {"state_dict": prefixed(n.state_dict(), "module."),
                                             "best_prec1": np.float64(0.83), "epoch": 3},
    "model_best.pth.tar": lambda n: {"arch": "resnet20", "state_dict": n.state_dict(),
                                     "best_acc1": torch.tensor(91.0), "optimizer": trained(n)},
    "Lightning": lightning,
    "timm": lambda n: {"epoch": 3, "arch": "resnet20", "state_dict": n.state_dict(), "version": 2,
                       "args": argparse.Namespace(lr=0.1), "metric": 1.0, "optimizer": trained(n)},
    "torchvision": lambda n: {"model": n.state_dict(), "optimizer": trained(n), "epoch": 3,
                              "args": argparse.Namespace(data=pathlib.PosixPath("x"))},
    "torch.compile": lambda n: prefixed(n.state_dict(), "_orig_mod."),
    "compiled DataParallel": lambda n: {"model": prefixed(n.state_dict(), "module._orig_mod.")},
    "average": lambda n: AveragedModel(n).state_dict(),
    "OpenMMLab": lambda n: {"meta": {"time": "now"}, "state_dict": renamed(
        prefixed(n.state_dict(), "backbone."), "backbone.fc", "head.fc")},
    "tutorial": lambda n: {"model_state_dict": n.state_dict(), "optimizer_state_dict": trained(n),
                           "loss": 0.3, "epoch": 3},
    "net.": lambda n: {"net": n.state_dict(), "acc": 90.0, "epoch": 3},
    "linear": lambda n: renamed(n.state_dict(), "fc.", "linear."),
    "losses": lambda n: {"state_dict": n.state_dict(),
                         "loss": collections.defaultdict(list, a=[1.0])},
    "list": lambda n: {"models": [n.state_dict()], "epoch": 3},
    "thop": lambda n: n.state_dict() | {"total_ops": torch.zeros(1, dtype=torch.float64),
                                        "layer1.0.total_params": torch.zeros(1)},
    "numbers of numpy": lambda n: {"state_dict": n.state_dict(), "losses": np.arange(3.0)},
}  # fmt: skip


NAMES = ["w.th", "w.ckpt", "model_best.pth.tar", "w"]


CASES = [*((way, "w.pth") for way in WAYS), *(("plain", name) for name in NAMES)]


@pytest.mark.parametrize(("way", "name"), CASES)
def test_weights_are_found_in_what_a_tool_saves(tmp_path, network, way, name):
    torch.save(WAYS[way](network), tmp_path / name)
    found = build_network("resnet20", str(tmp_path / name)).state_dict()
    for key, tensor in network.state_dict().items():
        same = tensor.half().float() if way == "half" else tensor
        assert torch.equal(found[key], same), key


def test_what_was_done_to_find_them_is_said_in_one_line(tmp_path, network, capsys):
    torch.save(WAYS["state_dict of DataParallel"](network), tmp_path / "w.pth")
    (tmp_path / "w.pth.sha256").unlink(missing_ok=True)
    build_network("resnet20", str(tmp_path / "w.pth"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "state_dict" in line]
    assert lines == [f"note: {tmp_path / 'w.pth'}: its state_dict, without 'module.'"]


def test_a_key_chooses_where_several_fit(tmp_path, network, capsys):
    other = {k: torch.full_like(t, 2) for k, t in network.state_dict().items()}
    torch.save({"model": network.state_dict(), "model_ema": other}, tmp_path / "w.pth")
    first = build_network("resnet20", str(tmp_path / "w.pth"))
    assert "not its model_ema (--weights_key chooses)" in capsys.readouterr().out
    second = build_network("resnet20", str(tmp_path / "w.pth"), key="model_ema")
    assert torch.equal(first.fc.weight, network.fc.weight) and bool((second.fc.weight == 2).all())


@pytest.mark.parametrize("key", ["teacher", "state_dict.teacher"])
def test_a_key_chooses_among_networks_in_one_dict(tmp_path, network, capsys, key):
    other = {k: torch.full_like(t, 2) for k, t in network.state_dict().items()}
    state = prefixed(network.state_dict(), "student.") | prefixed(other, "teacher.")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    build_network("resnet20", str(tmp_path / "w.pth"))
    assert "not its state_dict." in capsys.readouterr().out
    found = build_network("resnet20", str(tmp_path / "w.pth"), key=key)
    assert bool((found.fc.weight == 2).all())


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "module"])
def test_wrappers_around_single_layers_are_seen_through(tmp_path, network, wrapper):
    state = renamed(network.state_dict(), "layer1.", f"layer1.{wrapper}.")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    found = build_network("resnet20", str(tmp_path / "w.pth")).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in network.state_dict().items())


BESIDE = {
    "version": torch.__version__, "type": float, "text type": str, "kind": torch.bfloat16,
    "day": datetime.datetime(2026, 1, 1), "path": pathlib.PurePosixPath("x"), "range": range(3),
    "numbers": collections.defaultdict(int, a=1), "device": torch.device("cpu"),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights_is_no_reason_to_refuse_them(tmp_path, network, name):
    torch.save({"state_dict": network.state_dict(), "x": BESIDE[name]}, tmp_path / "w.pth")
    found = build_network("resnet20", str(tmp_path / "w.pth"))
    assert torch.equal(found.fc.weight, network.fc.weight)


def test_weights_under_masks_of_torch_are_the_pruned_ones(tmp_path):
    network = build_network("resnet20", "none", 10)
    prune.l1_unstructured(network.conv1, "weight", 0.5)
    torch.save({"state_dict": prefixed(network.state_dict(), "module.")}, tmp_path / "w.pth")
    found = build_network("resnet20", str(tmp_path / "w.pth"))
    assert torch.equal(found.conv1.weight, network.conv1.weight)
    assert int((found.conv1.weight == 0).sum()) == 216


@pytest.mark.parametrize(
    "name", ["{}.weight", "{}", "{}.weight_mask", "module.{}.weight"], ids=str
)
def test_masks_in_a_container_of_their_own_are_applied(tmp_path, network, name):
    mask = (torch.arange(432).view(16, 3, 3, 3) % 2).float()
    prefix = "module." * name.startswith("module.")
    content = {"state_dict": prefixed(network.state_dict(), prefix),
               "masks": {name.format("conv1"): mask}}  # fmt: skip
    torch.save(content, tmp_path / "w.pth")
    found = build_network("resnet20", str(tmp_path / "w.pth"))
    assert torch.equal(found.conv1.weight, network.conv1.weight * mask)
    assert torch.equal(found.fc.weight, network.fc.weight)


def test_a_key_that_a_file_has_not_is_named(tmp_path, network):
    torch.save({"model": network.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(VPNsError, match="nothing called 'ema' has a name of the network's"):
        build_network("resnet20", str(tmp_path / "w.pth"), key="ema")


@pytest.mark.parametrize("classes", [7, 10])
def test_a_missing_or_foreign_head_becomes_a_new_one(tmp_path, network, classes):
    state = {k: t for k, t in network.state_dict().items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "w.pth")
    found = build_network("resnet20", str(tmp_path / "w.pth"), classes=classes)
    assert found.fc.weight.shape == (classes, 64)
    assert torch.equal(found.bn1.weight, network.bn1.weight)


def test_another_network_is_answered_with_the_one_that_fits(tmp_path):
    torch.save(build_network("resnet32", "none", 10).state_dict(), tmp_path / "w.pth")
    with pytest.raises(VPNsError, match="do not fit resnet20 but resnet32"):
        build_network("resnet20", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, network, value):
    state = dict(network.state_dict()) | {"bn1.bias": torch.full((16,), value)}
    torch.save(state, tmp_path / "w.pth")
    done = run(tmp_path / "runs", *NONE, "--weights", tmp_path / "w.pth")
    assert done.code == 1 and "bn1.bias has values that are not finite" in done.error


def test_a_file_of_nothing_that_the_network_has_says_what_it_holds():
    content = {"model": {"blocks.0.qkv.weight": torch.zeros(2)}, "ema": {"x": torch.zeros(2)}}
    with pytest.raises(
        ValueError, match=r"no tensor of it has a name of the network's \(ema, model\)"
    ):
        find_state(content, tiny_network().state_dict(), "7")


# Whole commands


def test_a_plan_reads_the_file_that_the_run_reads(tmp_path):
    torch.save(build_network("resnet20", "none", 5).state_dict(), tmp_path / "w.pth")
    words = [*NONE, "--weights", tmp_path / "w.pth", "--label_mapping_mode", "none"]
    mapped = [*words[:-1], "flm", "--dataset", "imagefolder", "--data", tmp_path]
    assert run(tmp_path, *words, "--dry_run").code == 0
    plan = run(tmp_path, *mapped, "--dry_run")
    assert f'"prunable": {268_336 - 5 * 64}' in plan.out
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    assert run(tmp_path, *mapped, "--dry_run").code == 1


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("zeros", [0, 216])
def test_a_network_of_others_is_measured_with_its_zeros_as_its_mask(tmp_path, form, zeros):
    network = build_network("resnet20", "none", 10)
    with torch.no_grad():
        network.conv1.weight.view(-1)[:zeros] = 0
    path = tmp_path / "w"
    if form == "torch":
        torch.save({"state_dict": network.state_dict(), "best_prec1": 91.5}, path)
    else:
        save_file(network.state_dict(), path)
    words = ["--network", "resnet20", "--dataset", "digits", "--input_size", 8]
    result = call("--evaluate", path, *words, *CPU).result
    assert result["prunable"] - result["kept"] == zeros and result["prompted"] is None
    assert result["claimed"] == (91.5 if form == "torch" else None)

@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [("half", 0.5, 0.5), ("cifar10", 0.4914, 0.247), ("0.1,0.2,0.3/0.4,0.5,0.6", 0.1, 0.4)],
)
def test_weights_see_images_normalised_as_they_were_trained(tmp_path, text, mean, std):
    words = [*NONE, "--normalisation", text]
    done = run(tmp_path, *words)
    path = done.folder / "d0.2/model.safetensors"
    _, meta = load_model(path)
    found = meta["normalisation"]
    assert (found["mean"][0], found["std"][0]) == pytest.approx((mean, std))
    again = call("--evaluate", path, *CPU).result
    assert again["clean"] == done.result["rows"][0]["clean"]


@pytest.mark.parametrize("text", ["", "halves", "1,2,3", "0.1,0.2,0.3/0,1,1", "2,0,0/1,1,1", "x/y"])
def test_a_normalisation_that_is_none_is_refused(tmp_path, text):
    assert run(tmp_path, *NONE, f"--normalisation={text}").code == 2
