"""Networks and where their weights come from."""

import dataclasses
import hashlib
import os
import types

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from models import pretrained
from models.backbones import ALIASES, NETWORKS, SHIPPED, NetworkConfig, build_network
from models.resnet_cifar import Shortcut
from utils.config import parse_flags
from utils.errors import UsageError, VPNsError
from utils.tensors import read_tensors

PRUNABLE = {  # METHODS section 1.1; ResNet-20 counted by hand
    "resnet18": (11_678_912, 21),
    "resnet50": (25_502_912, 54),
    "vgg16": (138_344_128, 16),
    "vgg16_bn": (138_344_128, 16),
    "mobilenet_v2": (3_469_760, 53),
    "resnet20": (268_336, 20), "resnet32": (461_872, 32), "resnet44": (655_408, 44),
    "resnet56": (848_944, 56),
}
SHIPPED_RESNET20 = SHIPPED / NETWORKS["resnet20"].source


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def tensors(network):
    return list(network.state_dict().values())


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def state():
    return build_network("resnet20", "none", seed=3).state_dict()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder, and a server folder whose file stands for torchvision's ResNet-18."""
    state = build_network("resnet20", "none", seed=5).state_dict()
    server = tmp_path / "server"
    server.mkdir()
    torch.save(state, server / "plain.pth")
    digest = hashlib.sha256((server / "plain.pth").read_bytes()).hexdigest()
    file = (server / "plain.pth").rename(server / f"tiny-{digest[:8]}.pth")
    row = dataclasses.replace(NETWORKS["resnet20"], weights="imagenet", source="Tiny")
    monkeypatch.setitem(NETWORKS, "tiny", row)
    weights = types.SimpleNamespace(url=file.as_uri())
    monkeypatch.setattr(pretrained, "get_weight", lambda entry: weights)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints", file, state


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_prunable_weights_of_the_paper(name):
    with torch.device("meta"):
        network = build_network(name, "none")
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert (sum(m.weight.numel() for m in layers), len(layers)) == PRUNABLE[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_named_in_a_row_has_the_classes_asked_for(name):
    with torch.device("meta"):
        network = build_network(name, "none", classes=7)
        source = build_network(name, "none")
    head = NETWORKS[name].head
    assert network.get_submodule(head).out_features == 7
    assert source.get_submodule(head).out_features == NETWORKS[name].source_classes


def test_torchvision_has_every_entry_that_a_row_names():
    names = {n: row.source for n, row in NETWORKS.items() if row.weights == "imagenet"}
    found = {n: torchvision.models.get_weight(entry) for n, entry in names.items()}
    assert {n: w.name for n, w in found.items()} == {
        "resnet18": "IMAGENET1K_V1",
        "resnet50": "IMAGENET1K_V2",
        "vgg16": "IMAGENET1K_V1",
        "vgg16_bn": "IMAGENET1K_V1",
        "mobilenet_v2": "IMAGENET1K_V1",
    }
    assert all(found[n] in torchvision.models.get_model_weights(n) for n in found)


def test_resnet20_has_269722_parameters():
    assert sum(p.numel() for p in build_network("resnet20", "none").parameters()) == 269_722


@pytest.mark.parametrize("size", [1, 7, 16, 33])
def test_resnet20_takes_any_image_size(size):
    network = build_network("resnet20", "none").eval()
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_a_growing_shortcut_takes_every_second_pixel_and_pads_channels():
    x = torch.rand(1, 2, 5, 5)
    out = Shortcut(2, 2)(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, 0].any() and not out[:, 3].any()


def test_random_weights_depend_on_the_seed_alone():
    first = tensors(build_network("resnet20", "none", seed=1))
    torch.rand(17)
    assert same(first, tensors(build_network("resnet20", "none", seed=1)))
    assert not same(first, tensors(build_network("resnet20", "none", seed=2)))


def test_building_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    build_network("resnet20", "none")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_weights_come_from_a_file(tmp_path, state, suffix):
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert same(tensors(build_network("resnet20", str(path), seed=9)), state.values())


def test_a_head_of_another_size_is_new_and_the_rest_is_loaded(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    found = build_network("resnet20", str(tmp_path / "w.pth"), classes=4, seed=1).state_dict()
    fresh = build_network("resnet20", "none", classes=4, seed=1).state_dict()
    assert torch.equal(found["fc.weight"], fresh["fc.weight"]) and found["fc.weight"].shape[0] == 4
    assert all(torch.equal(found[key], state[key]) for key in state if not key.startswith("fc."))


def test_a_head_of_the_size_asked_for_is_loaded(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    found = build_network("resnet20", str(tmp_path / "w.pth"), classes=10, seed=1)
    assert torch.equal(found.fc.weight, state["fc.weight"])


def test_the_source_head_of_a_file_has_the_size_in_the_file(tmp_path):
    own = build_network("resnet20", "none", classes=6, seed=1)
    torch.save(own.state_dict(), tmp_path / "w.pth")
    assert same(tensors(build_network("resnet20", str(tmp_path / "w.pth"))), tensors(own))


def test_files_without_batch_counters_load(tmp_path, state):
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    found = build_network("resnet20", str(tmp_path / "w.pth")).state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "missing layer1.0.conv1.weight"),
        (lambda s: s.update(extra=torch.zeros(2)), "unexpected extra"),
        (
            lambda s: s.update({"bn1.bias": torch.zeros(3)}),
            r"of another shape bn1.bias \(3,\) instead of \(16,\)",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_with_its_keys(tmp_path, state, change, words):
    state = dict(state)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(VPNsError, match=words) as error:
        build_network("resnet20", str(tmp_path / "w.pth"))
    assert "w.pth" in one_line(error)


def test_many_wrong_keys_are_counted_not_listed(tmp_path, state):
    torch.save({f"{k}.x": v for k, v in state.items()} | {"conv1.weight": state["conv1.weight"]},
               tmp_path / "w.pth")  # fmt: skip
    with pytest.raises(VPNsError, match="unexpected conv1.weight.x, .* and [0-9]+ more"):
        build_network("resnet20", str(tmp_path / "w.pth"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VPNsError, match="absent.pth does not exist"):
        build_network("resnet20", str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 7, 0.5])
def test_a_cut_file_is_refused_in_one_line(tmp_path, state, suffix, kept):
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(VPNsError, match="get it again") as error:
        build_network("resnet20", str(path))
    assert "weights_only" not in one_line(error)


class Runs:
    def __reduce__(self):
        return os.mkdir, (os.environ["TEST_RUNS"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_code_is_refused_and_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("TEST_RUNS", str(tmp_path / "ran"))
    torch.save({"w": Runs()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(VPNsError, match=r"would call posix\.mkdir") as error:
        read_tensors(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists() and "weights_only" not in one_line(error)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(VPNsError, match=r"neither of safetensors nor of torch\.save"):
        read_tensors(tmp_path / "w.bin")


def test_a_file_without_a_dict_is_refused(tmp_path):
    torch.save(torch.zeros(2), tmp_path / "w.pt")
    with pytest.raises(VPNsError, match="holds a Tensor, not a dict"):
        read_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize("form", ["{}\n", "{}  w.pt\n", "{}"])
def test_a_file_that_agrees_with_its_side_car_loads(tmp_path, form):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    digest = hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest()
    (tmp_path / "w.pt.sha256").write_text(form.format(digest))
    assert torch.equal(read_tensors(tmp_path / "w.pt")["a"], torch.ones(2))


def test_a_flipped_bit_is_noticed_through_the_side_car(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    data = bytearray((tmp_path / "w.safetensors").read_bytes())
    (tmp_path / "w.safetensors.sha256").write_text(hashlib.sha256(data).hexdigest())
    data[-1] ^= 1
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(VPNsError, match="checksum mismatch: .*w.safetensors"):
        read_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "weights", "has"),
    [
        ("resnet20", "imagenet", "fashion_mnist, none or a file"),
        ("resnet18", "fashion_mnist", "imagenet, none or a file"),
        ("resnet18", "imagnet", "imagenet, none or a file"),
    ],
)
def test_weights_that_a_network_does_not_have_are_refused(name, weights, has):
    with pytest.raises(UsageError, match=has):
        build_network(name, weights)


def test_an_unknown_network_is_refused_with_the_names():
    with pytest.raises(UsageError, match="'resnet19' is not one of resnet18, "):
        build_network("resnet19", "none")


@pytest.mark.skipif(not SHIPPED_RESNET20.exists(), reason="the small checkpoint is not here")
def test_the_shipped_weights_are_the_default_of_resnet20():
    found, stored = build_network("resnet20").state_dict(), read_tensors(SHIPPED_RESNET20)
    assert all(torch.equal(found[key], stored[key]) for key in stored)


def test_shipped_weights_load_by_their_name(tmp_path, monkeypatch, state):
    monkeypatch.setattr("models.backbones.SHIPPED", tmp_path)
    save_file(state, tmp_path / SHIPPED_RESNET20.name)
    assert same(tensors(build_network("resnet20", "fashion_mnist")), state.values())


def test_absent_weights_of_torchvision_are_fetched_and_kept(hub, capsys):
    folder, file, state = hub
    assert same(tensors(build_network("tiny", "imagenet")), state.values())
    assert (folder / file.name).read_bytes() == file.read_bytes()
    assert capsys.readouterr().out == ""  # RESULT is the last line of stdout


def test_weights_in_the_folder_of_torch_hub_need_no_network(hub):
    folder, file, state = hub
    folder.mkdir(parents=True)
    file.rename(folder / file.name)
    assert same(tensors(build_network("tiny", "imagenet")), state.values())


def test_weights_that_cannot_be_fetched_say_what_to_put_where(hub):
    folder, file, _ = hub
    file.unlink()
    with pytest.raises(VPNsError, match=f"get {file.as_uri()} yourself and put it in {folder}"):
        build_network("tiny", "imagenet")


def test_a_download_with_the_wrong_hash_is_refused_and_not_kept(hub):
    folder, file, _ = hub
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(VPNsError, match="invalid hash value") as error:
        build_network("tiny", "imagenet")
    assert list(folder.iterdir()) == [] and one_line(error)


def test_a_damaged_file_in_the_folder_of_torch_hub_is_named(hub):
    folder, file, _ = hub
    folder.mkdir(parents=True)
    (folder / file.name).write_bytes(b"cut")
    with pytest.raises(VPNsError, match=f"{folder / file.name} is damaged: delete it"):
        build_network("tiny", "imagenet")


def test_vggs_pooling_leaves_images_of_its_own_size_alone():
    network = build_network("vgg16", "none")
    theirs = torch.nn.AdaptiveAvgPool2d((7, 7))
    for side in (7, 2, 9):
        x = torch.randn(2, 3, side, side)
        assert torch.equal(network.avgpool(x), theirs(x))
    x = torch.randn(2, 3, 7, 7, requires_grad=True)
    assert network.avgpool(x) is x


def test_vgg_is_vgg16():
    config, typed = parse_flags(NetworkConfig(), ["--network", "vgg"])
    assert (config.network, typed) == ("vgg16", {"network"})
    with torch.device("meta"):
        assert len(list(build_network("vgg", "none").parameters())) == 32
    assert {name for name in ALIASES.values() if ":" not in name} <= NETWORKS.keys()


def test_the_weights_flag_takes_a_path():
    config, _ = parse_flags(NetworkConfig(), ["--weights", "some/w.pth"])
    assert (config.network, config.weights) == ("resnet18", "some/w.pth")
