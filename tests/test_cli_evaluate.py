"""`--evaluate` through the command line: every kind of checkpoint, and files that are none."""

import hashlib
import shutil
import subprocess
import sys
import types

import pytest
import torch
import torchvision
from cli import SMALL, at_call, call, finish, forked, only_run, run, send, start
from PIL import Image
from safetensors.torch import save_file
from test_foreign import authors_mask, checkpoint, layers_of, scores_of

from data import DataConfig, load_data
from program.checkpoints import read_checkpoint
from runfolder.stage_log import StageLog

LEVEL = ["--density_list", "0.1", "--epochs", 2, "--eval_every", 0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), *LEVEL, "--keep_states")


@pytest.fixture
def level(trained):
    return trained.folder / "d0.1"


def evaluate(source, *words):
    return call("--evaluate", source, "--device", "cpu", "--workers", 0, *words)


# Files of ours


@pytest.mark.parametrize("words", [["--epochs", 2], ["--epochs", 2, "--save_minutes", 1e-9]])
def test_state_of_bip_is_measured_with_the_weights_that_bip_has_trained(tmp_path, words):
    done = run(
        tmp_path, "--prune_method", "bip", "--density_list", "0.1", "--keep_states", *words
    )
    (row,) = done.result["rows"]
    newest = max(done.folder.glob("d0.1/search-*.pt"), key=lambda path: int(path.stem[7:]))
    state = evaluate(newest).result
    assert (state["clean"], state["kept"]) == (row["clean"], row["kept"])


def test_model_has_the_accuracies_of_its_run(trained, level):
    (row,) = trained.result["rows"]
    found = evaluate(level / "model.safetensors").result
    assert (found["clean"], found["prompted"]) == (row["clean"], row["prompted"])
    assert (found["kept"], found["prunable"]) == (row["kept"], row["prunable"])
    assert found["images"] == 360 and found["claimed"] == row["clean"]
    assert found["sparsity"] == pytest.approx(1 - row["kept"] / row["prunable"], abs=1e-8)


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--network", "resnet18"], "holds a resnet20, not a resnet18"),
     (["--density", 0.3], "keeps 26,834 of 268,336 weights, which is not density 0.3")],
)  # fmt: skip
def test_file_that_is_not_what_was_typed_is_refused(level, words, reason):
    done = evaluate(level / "model.safetensors", *words)
    assert done.code == 2 and reason in done.error


def test_end_of_the_search_has_the_accuracy_after_it(trained, level):
    found = evaluate(level / "search.safetensors").result
    assert found["clean"] == trained.result["rows"][0]["after_search"]


def test_last_state_of_fine_tuning_has_the_final_accuracy(trained, level):
    *_, newest = sorted(level.glob("state-*.pt"))
    (row,) = trained.result["rows"]
    found = evaluate(newest).result
    assert (found["clean"], found["prompted"]) == (row["clean"], row["prompted"])
    assert found["kept"] == row["kept"]


@pytest.mark.parametrize("mapping", ["flm", "none"])
def test_last_state_of_the_search_has_the_accuracy_after_it(tmp_path, mapping):
    words = [*LEVEL, "--label_mapping_mode", mapping]
    kill = (StageLog, "save", 2, send("SIGKILL"), True)
    forked(tmp_path / "killed", *words, before=lambda: at_call(*kill))
    found = evaluate(only_run(tmp_path / "killed") / "d0.1/state-2.pt").result
    (row,) = run(tmp_path / "killed", *words).result["rows"]
    assert (found["clean"], found["kept"]) == (row["after_search"], row["kept"])


@pytest.mark.parametrize("words", [
    ["--prompt_method", "none"], ["--prompt_method", "random"], ["--label_mapping_mode", "none"],
    ["--prune_method", "dense"], ["--post_prompt", "zeroshot"],
])  # fmt: skip
def test_models_of_other_runs_have_the_accuracies_of_their_run(tmp_path, words):
    done = run(tmp_path, "--density_list", "0.1", "--eval_every", 0, *words)
    (row,) = done.result["rows"]
    (model,) = done.folder.glob("d*/model.safetensors")
    found = evaluate(model).result
    assert found["clean"] == row["clean"] and found["kept"] == row["kept"]
    if row["prompted"] is not None:
        assert found["prompted"] == row["prompted"]


def test_model_without_its_side_car_is_still_measured(trained, level, tmp_path):
    shutil.copy(level / "model.safetensors", tmp_path)
    done = evaluate(tmp_path / "model.safetensors")
    assert done.result["clean"] == trained.result["rows"][0]["clean"]
    note, _ = done.out.splitlines()
    assert note.startswith(f"note: {tmp_path}/model.safetensors has no model.safetensors.sha256")


def test_file_url_is_measured_like_its_path(level):
    path = level / "model.safetensors"
    assert evaluate(path.as_uri()).result == evaluate(path).result


@pytest.mark.slow
def test_process_of_its_own_prints_the_same_result(level):
    words = ["--evaluate", level / "model.safetensors", "--device", "cpu", "--workers", 0]
    assert finish(start(*words)).result == evaluate(level / "model.safetensors").result


# Without a line of ours: a new Python that knows torchvision and safetensors only

STRANGER = """
import hashlib, json, sys, torch, torchvision
from safetensors import safe_open
from safetensors.torch import load_file
torch.set_num_threads(1)
network = torchvision.models.mobilenet_v2(weights=None)
network.load_state_dict(load_file(sys.argv[1]), strict=True)
with safe_open(sys.argv[1], "pt") as file:
    meta = json.loads(file.metadata()["vpns"])
mean, std = (torch.tensor(meta["normalisation"][n]).view(3, 1, 1) for n in ("mean", "std"))
images = load_file(sys.argv[2])["images"]
with torch.no_grad():
    logits = network.eval()((images - mean) / std)[:, meta["label_map"]]
ours = {"data", "models", "pruning", "prompts", "program", "utils", "main_vpns"} & set(sys.modules)
kept = sum(int(p.count_nonzero()) for p in network.parameters() if p.ndim > 1)
print(hashlib.sha256(logits.numpy().tobytes()).hexdigest(), kept, *ours)
"""


def test_another_program_gets_the_same_logits_to_the_bit(tmp_path):
    words = ["--network", "mobilenet_v2", "--prune_method", "random", "--density_list", "0.1"]
    done = run(tmp_path, *words, "--eval_every", 0, "--train_images", 20, "--batch_size", 10)
    path, shown = done.folder / "d0.1/model.safetensors", tmp_path / "images.safetensors"
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    save_file({"images": images}, shown)
    command = [sys.executable, "-I", "-c", STRANGER, str(path), str(shown)]
    theirs = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    model = read_checkpoint(path, {}).model.eval()
    with torch.no_grad():
        digest = hashlib.sha256(model(images).numpy().tobytes()).hexdigest()
    assert theirs.stdout.split() == [digest, str(done.result["rows"][0]["kept"])]


def test_evaluation_leaves_no_folder(level, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(level / "model.safetensors")
    assert not list(tmp_path.iterdir())


# The authors' files


def test_authors_file_without_its_density_is_refused(tmp_path):
    torch.save(checkpoint("resnet20"), tmp_path / "2best.pth")
    done = evaluate(tmp_path / "2best.pth", "--dataset", "digits")
    assert done.code == 2 and done.error.startswith(f"{tmp_path}/2best.pth: its scores do not")
    assert done.error.endswith("name it with --density")


def test_authors_file_with_ties_at_the_threshold_is_measured_and_noted(tmp_path):
    file = checkpoint("resnet20")
    file["mapping_sequence"] = torch.randperm(10)
    for key, tensor in file["state_dict"].items():
        if key.endswith("popup_scores"):
            file["state_dict"][key] = torch.full_like(tensor, 0.5 if key.startswith("conv1") else 1)
    torch.save(file, tmp_path / "2best.pth")
    words = ["--dataset", "digits", "--density", 0.9999]
    found = evaluate(tmp_path / "2best.pth", *words).result
    assert found["prunable"] - found["kept"] == 3 * 16 * 9 > 0.0001 * found["prunable"]
    assert any("ties at the threshold are pruned" in note for note in found["notes"])


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """A ResNet-18 in their format, and the network that it stands for."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    layers = layers_of(network)
    scores = scores_of(layers)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    state |= {f"{name}.popup_scores": score for name, score in scores.items()}
    region = torch.ones(3, 32, 32)
    region[:, 4:28, 4:28] = 0
    path = tmp_path_factory.mktemp("authors") / "2best.pth"
    mapping = torch.randperm(1000)[:10]
    torch.save(
        {
            "state_dict": state,
            "visual_prompt": {"program": torch.rand(3, 32, 32), "mask": region},
            "mapping_sequence": mapping,
            "ckpt_test_acc": 0.125,
        },
        path,
    )
    with torch.no_grad():
        for name, mask in authors_mask(scores, 0.4).items():
            layers[name].weight *= mask
    return path, network.eval(), mapping


def accuracy(network, mapping):
    """On the digits at 32 pixels, in percent: without a line of ours but the images."""
    config = DataConfig(dataset="digits", workers=0)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    right = seen = 0
    for images, labels in load_data(config, 32, 60, torch.device("cpu")).test.batches():
        with torch.no_grad():
            predicted = network((images - mean) / std)[:, mapping].argmax(1)
        right, seen = right + int((predicted == labels).sum()), seen + len(labels)
    return 100 * right / seen


DIGITS = ["--dataset", "digits", "--input_size", 32, "--batch_size", 60]


def test_authors_file_is_measured_as_they_did(authors):
    path, network, mapping = authors
    done = evaluate(path, *DIGITS, "--density", 0.4)
    found = done.result
    assert done.out.count(f"note: {path} has no 2best.pth.sha256") == 1
    assert found["clean"] == pytest.approx(accuracy(network, mapping), abs=1e-4)
    assert (found["network"], found["claimed"]) == ("resnet18", 12.5)
    assert found["prunable"] == 11_678_912 and found["kept"] == 4_671_565
    assert found["prompted"] is not None and found["images"] == 360


def test_zoo_name_is_downloaded_and_measured(authors, monkeypatch, tmp_path):
    def download(url, output, quiet):
        return shutil.copy(authors[0], output)

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    monkeypatch.setenv("VPNS_CACHE", str(tmp_path))
    found = evaluate("resnet18_cifar100_s60", *DIGITS).result
    assert found["checkpoint"] == str(tmp_path / "resnet18_cifar100_s60.pth")
    assert found["kept"] == 4_671_565


def test_failed_download_names_the_link_and_leaves_nothing(monkeypatch, tmp_path):
    module = types.SimpleNamespace(download=lambda **options: None)
    monkeypatch.setitem(sys.modules, "gdown", module)
    monkeypatch.setenv("VPNS_CACHE", str(tmp_path))
    done = evaluate("resnet18_cifar10_s40")
    link = "https://drive.google.com/file/d/1iONKgIyJf5XIqMIQDnreQgyzDfa4KyFh/view"
    assert done.code == 1 and not list(tmp_path.iterdir())
    assert done.err.splitlines()[-1].startswith(f"error: cannot fetch {link}")


def test_authors_file_needs_a_dataset(authors):
    done = evaluate(authors[0], "--density", 0.4)
    assert done.code == 2 and "name it with --dataset" in done.error


def test_authors_file_without_hint_of_its_density_asks_for_it(authors):
    done = evaluate(authors[0], *DIGITS)
    assert done.code == 2 and "name it with --density" in done.error


# What is refused


def flipped(path, folder, place=-100):
    """A copy of a file and its side-car with one bit changed."""
    copy = folder / path.name
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    copy.write_bytes(data)
    shutil.copy(f"{path}.sha256", f"{copy}.sha256")
    return copy


@pytest.mark.parametrize("place", [0, 20, -100], ids=["length", "header", "data"])
@pytest.mark.parametrize("name", ["model.safetensors", "search.safetensors"])
def test_flipped_bit_is_noticed(level, tmp_path, name, place):
    copy = flipped(level / name, tmp_path, place)
    done = evaluate(copy)
    assert done.code == 1 and done.error.startswith(f"checksum mismatch: {copy}")


def test_flipped_bit_in_a_state_is_noticed(level, tmp_path):
    done = evaluate(flipped(next(level.glob("state-*.pt")), tmp_path))
    assert done.code == 1 and "checksum mismatch" in done.error


@pytest.mark.parametrize("place", [0, 63])
def test_flipped_bit_in_a_side_car_is_noticed(level, tmp_path, place):
    path = shutil.copy(level / "model.safetensors", tmp_path)
    text = bytearray((level / "model.safetensors.sha256").read_bytes())
    text[place] ^= 1
    (tmp_path / "model.safetensors.sha256").write_bytes(text)
    done = evaluate(path)
    assert done.code == 1 and done.error.startswith(f"checksum mismatch: {path}")


@pytest.mark.parametrize("name", ["model.safetensors", "state-1.pt", "best.pth"])
def test_file_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"no checkpoint at all" * 50)
    done = evaluate(tmp_path / name, "--dataset", "digits")
    assert done.code == 1 and str(tmp_path / name) in done.error


def test_folder_of_a_run_gets_the_name_of_its_model(level):
    run = level.parent
    assert evaluate(run).error == f"{run} is not a file; did you mean {level}/model.safetensors?"


def test_missing_file_is_named(tmp_path):
    done = evaluate(tmp_path / "none.safetensors")
    assert done.code == 1 and done.error == f"{tmp_path / 'none.safetensors'} is not a file"


def test_misspelt_zoo_name_gets_the_nearest():
    assert "did you mean resnet18_cifar100_s60" in evaluate("resnet18_cifar100_60").error


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "does not say its network: name it with --network"),
        (["--network", "resnet20"], "does not say its dataset: name it with --dataset"),
    ],
)
def test_weights_that_say_nothing_of_themselves_are_asked_for_it(tmp_path, words, reason):
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "plain.safetensors")
    done = evaluate(tmp_path / "plain.safetensors", *words)
    assert done.code == 2 and reason in done.error


@pytest.mark.parametrize("mapping", ["flm", "none"])
def test_dataset_with_other_classes_is_refused(level, tmp_path, mapping):
    model = level / "model.safetensors"
    if mapping == "none":
        words = ["--density_list", "0.1", "--epochs", 0, "--label_mapping_mode", "none"]
        model = run(tmp_path, *words).folder / "d0.1/model.safetensors"
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / part / label / "0.png")
    done = evaluate(model, "--dataset", "imagefolder", "--data", tmp_path / "images")
    assert done.code == 2
    assert done.error.endswith(
        "tells 10 classes apart, imagefolder has 2: name its dataset with --dataset"
    )


def test_missing_data_is_an_error_of_the_data(level, tmp_path):
    words = ["--dataset", "cifar10", "--data", tmp_path, "--no_download"]
    assert evaluate(level / "model.safetensors", *words).code == 4


def test_small_flags_do_not_leak_into_an_evaluation(level):
    found = evaluate(level / "model.safetensors").result
    again = call(*SMALL, "--evaluate", level / "model.safetensors").result
    assert again["clean"] == found["clean"]
