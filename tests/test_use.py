"""What is done with finished networks: names of classes, prediction, export, packing, profile."""

import csv
import json
import re
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import pytest
import torch
from cli import ROOT, call, meta, run
from PIL import Image
from report_runs import call as write_report
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models import build_network, load_pruned
from utils.checkpoint import load_model, save_model
from utils.errors import VPNsError
from utils.packed import META, VALUES

CPU = ("--device", "cpu", "--workers", 0)
NAMES = ("bird", "cat", "dog")


def shades(root: Path, *names: str) -> Path:
    """Class folders whose images have a shade of their own."""
    for part, count in (("train", 8), ("test", 4)):
        for number, name in enumerate(names):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                shade = (60 * number + 30, (90 * number) % 256, 12 * i)
                Image.new("RGB", (20 + i, 24), shade).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return shades(tmp_path_factory.mktemp("shades"), *NAMES)


def pruned(folder: Path, images: Path, mapping: str) -> Path:
    """A model file of a network under a prompt, mapped or with a head of its own."""
    words = ["--dataset", "imagefolder", "--data", images, "--weights", "fashion_mnist",
             "--train_images", 0, "--batch_size", 8, "--density_list", "0.2", "--epochs", 2,
             "--input_size", 12, "--output_size", 16, "--label_mapping_mode", mapping]  # fmt: skip
    return run(folder, *words).folder / "d0.2/model.safetensors"


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, images) -> Path:
    return pruned(tmp_path_factory.mktemp("mapped"), images, "flm")


@pytest.fixture(scope="module", params=["mapped", "own head"])
def model(request, tmp_path_factory, images, mapped) -> Path:
    if request.param == "mapped":
        return mapped
    return pruned(tmp_path_factory.mktemp("own"), images, "none")


def expected(model: Path, images: Path, key: str = "prompted") -> float:
    return call("--evaluate", model, "--data", images, *CPU).result[key]


def labelled(images: Path) -> list[tuple[Path, str]]:
    return [(path, path.parent.name) for path in sorted(images.glob("test/*/*.png"))]


# Names of the classes


@pytest.mark.parametrize("mapping, said", [("flm", True), ("none", False)])
def test_a_run_says_what_it_keeps_in_vain(images, tmp_path, mapping, said):
    """Of ten rows of the head three are read: magnitudes know nothing of it."""
    done = run(tmp_path, "--dataset", "imagefolder", "--data", images, "--weights", "fashion_mnist",
               "--train_images", 0, "--batch_size", 8, "--density_list", "0.01", "--epochs", 1,
               "--prune_method", "omp", "--label_mapping_mode", mapping)  # fmt: skip
    assert done.code == 0, done.err
    assert ("in rows of the head that no class reads" in done.out) is said


def test_a_file_names_its_classes_and_says_that_it_is_of_torch(model):
    assert meta(model)["classes"] == list(NAMES)
    with safe_open(model, "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_classes_in_another_order_are_mapped_by_their_names(model, images, tmp_path):
    data = tmp_path / "images"
    for part in ("train", "test"):  # the same pictures; sorted otherwise once cat is a capital
        for name in NAMES:
            (data / part).mkdir(parents=True, exist_ok=True)
            (data / part / name).symlink_to(images / part / name)
    right = expected(model, images, "clean")
    renamed = call("--evaluate", model, "--data", data, *CPU).result
    assert renamed["clean"] == right and renamed["notes"] == []
    tensors, about = load_model(model)
    order = [2, 0, 1]
    about["classes"] = [about["classes"][i] for i in order]
    if about["label_map"] is None:
        about["label_map"] = order
        about["config"]["label_mapping_mode"] = "flm"
    else:
        about["label_map"] = [about["label_map"][i] for i in order]
    text = json.dumps(about)
    save_file(tensors, tmp_path / "other.safetensors", metadata={"vpns": text})
    done = call("--evaluate", tmp_path / "other.safetensors", "--data", images, *CPU).result
    assert done["clean"] == right and "mapped by their names" in done["notes"][-1]


def test_other_classes_are_refused_unless_their_places_count(model, images, tmp_path):
    data = shades(tmp_path, "bird", "cat", "frog")
    done = call("--evaluate", model, "--data", data, *CPU)
    assert done.code == 2 and "has not learned the class 'frog', but dog" in done.error
    done = call("--evaluate", model, "--data", data, "--classes_by_position", *CPU)
    assert done.code == 0 and done.result["clean"] == expected(model, images, "clean")


def test_a_file_without_names_is_measured_as_before(model, images, tmp_path):
    tensors, about = load_model(model)
    del about["classes"], about["prompt_pixels"]
    path = tmp_path / "old.safetensors"
    save_file(tensors, path, metadata={"vpns": json.dumps(about)})
    assert expected(path, images, "clean") == expected(model, images, "clean")
    with pytest.raises(VPNsError, match="of an older version, which kept no finished prompt"):
        load_pruned(path)
    assert load_pruned(path, clean=True)[1] == ("0", "1", "2")


# What a stranger's file says


STRANGE = {
    "a code of yours": (lambda a: a | {"network": "own_nets:net"}, "name it as the network"),
    "another network": (lambda a: a | {"network": "resnet32"}, "does not hold what it should"),
    "an output too many": (lambda a: a | {"label_map": [0, 1, 99]}, "3 of 10 outputs"),
    "no number": (lambda a: a | {"label_map": [0, 1, "2"]}, "3 of 10 outputs"),
    "names": (lambda a: a | {"classes": ["a", "b"]}, "2 names for 3"),
    "absurd sizes": (lambda a: a | {"sizes": a["sizes"] | {"input": 10**6}}, "1000000"),
    "an absurd canvas": (lambda a: a | {"sizes": a["sizes"] | {"output": 99}}, "a prompt of shape"),
    "colours": (lambda a: a | {"normalisation": {"mean": [0.5], "std": [1, 1, 1]}}, "should"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_file_that_says_what_cannot_be_is_refused(mapped, tmp_path, case):
    change, reason = STRANGE[case]
    tensors, about = load_model(mapped)
    path = tmp_path / "strange.safetensors"
    save_file(tensors, path, metadata={"vpns": json.dumps(change(about))})
    done = call("--predict", tmp_path, "--model", path, *CPU)
    assert done.code in (1, 2) and path.name in done.error and reason in done.error


# Prediction


def test_pictures_and_folders_are_named(model, images, tmp_path):
    done = call("--predict", images / "test", "--model", model, "--to", tmp_path / "a.csv", *CPU)
    assert done.result["pictures"] == 12
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    right = sum(row["class"] == Path(row["picture"]).parent.name for row in rows)
    assert 100 * right / 12 == pytest.approx(expected(model, images), abs=0.01)
    picture, name = labelled(images)[0]
    line = call("--predict", picture, "--model", model, *CPU).out.splitlines()[0]
    assert re.fullmatch(rf"[01]\.\d{{4}}  \w+  {re.escape(str(picture))}", line)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--predict", "x.png"], 2, "needs a model: name its model.safetensors with --model"),
        (["--predict", "absent.png", "--model", "MODEL"], 4, "absent.png does not exist"),
        (["--predict", ".", "--model", "absent"], 1, "absent does not exist"),
        (["--export", "MODEL"], 2, "needs a folder: give it with --to"),
        (["--pack", "MODEL"], 2, "give it with --to"),
    ],
)
def test_what_is_missing_is_said_in_one_line(model, words, code, reason):
    done = call(*(str(model) if word == "MODEL" else word for word in words), *CPU)
    assert done.code == code and reason in done.error


def test_a_picture_that_a_spreadsheet_would_run_is_quoted(model, images, tmp_path):
    (tmp_path / "=x.png").write_bytes(labelled(images)[0][0].read_bytes())
    call("--predict", tmp_path, "--model", model, "--to", tmp_path / "a.csv", *CPU)
    assert f"{tmp_path}/=x.png" in (tmp_path / "a.csv").read_text()


# Other programs


@pytest.fixture(scope="module")
def exported(mapped, images, tmp_path_factory) -> Path:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported") / "deployed"
    done = call("--export", mapped, "--to", folder, "--data", images, *CPU)
    assert done.code == 0, done.err
    assert max(done.result["differences"].values()) < 1e-4 and done.result["images"] == 12
    assert done.result["accuracy"] == pytest.approx(expected(mapped, images), abs=0.01)
    return folder


STRANGER = """
import sys, numpy, torch
from pathlib import Path
from PIL import Image
folder, images = map(Path, sys.argv[1:])
names = (folder / "labels.txt").read_text().splitlines()
program = torch.export.load(folder / "model.pt2").module()
import onnxruntime
session = onnxruntime.InferenceSession(folder / "model.onnx")
right = [0, 0]
for path in sorted(images.glob("test/*/*.png")):
    pixels = numpy.array(Image.open(path).convert("RGB")).transpose(2, 0, 1)[None]
    found = [program(torch.from_numpy(pixels))[0].argmax(),
             session.run(None, {"images": pixels})[0].argmax()]
    right = [r + (names[int(f)] == path.parent.name) for r, f in zip(right, found)]
print(*right)
"""


def test_a_process_without_this_project_runs_what_was_exported(exported, mapped, images, tmp_path):
    command = [sys.executable, "-I", "-c", STRANGER, str(exported), str(images)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    right = round(12 * expected(mapped, images) / 100)
    assert done.stdout.split()[-2:] == [str(right)] * 2


def exports_by(program, monkeypatch) -> None:
    monkeypatch.setattr("program.export._as_program", lambda model, path: program(model))
    monkeypatch.setattr("program.export.has_onnx", lambda: False)


def test_a_network_that_rounds_coarsely_is_exported(mapped, tmp_path, monkeypatch):
    """Its logits are far larger than what they differ by, so each order of sums has its own."""
    exports_by(lambda model: torch.no_grad()(model.double()), monkeypatch)
    tensors, about = load_model(mapped)
    head = tensors["fc.weight"]
    common = (head[about["label_map"]] != 0).all(0)
    assert common.any()
    tensors = {**tensors, "fc.weight": head + 1e5 * common * (head != 0)}
    save_model(tmp_path / "coarse.safetensors", tensors, about)
    done = call("--export", tmp_path / "coarse.safetensors", "--to", tmp_path / "deployed", *CPU)
    assert done.code == 0, done.err
    assert done.result["differences"]["model.pt2"] > 1e-4


def test_an_export_with_other_outputs_is_not_written(mapped, tmp_path, monkeypatch):
    exports_by(lambda model: lambda images: torch.full((len(images), 3), 1 / 3), monkeypatch)
    done = call("--export", mapped, "--to", tmp_path / "deployed", *CPU)
    assert done.code == 1 and "model.pt2 differs by" in done.error
    assert not (tmp_path / "deployed").exists()


def test_the_card_says_what_it_is_and_how_to_run_it(exported):
    text = (exported / "README.md").read_text()
    assert "- **sparsity**: 80 %" in text and "torch.export.load" in text
    assert (exported / "labels.txt").read_text() == "bird\ncat\ndog\n"


def test_exported_weights_have_an_output_a_class_and_their_zeros(exported, mapped):
    weights, own = load_file(exported / "model.safetensors"), load_file(mapped)
    assert len(weights["fc.weight"]) == 3
    same = [name for name in own if not name.startswith("fc.")]
    assert all(torch.equal(weights[name], own[name]) for name in same)
    program = torch.export.load(exported / "model.pt2").state_dict
    zeros = {name: int((tensor == 0).sum()) for name, tensor in own.items() if "conv" in name}
    assert all(int((program[f"network.{n}"] == 0).sum()) == count for n, count in zeros.items())


def test_timm_reads_what_was_exported(images, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr("program.export.has_onnx", lambda: False)  # which takes long
    words = ["--dataset", "imagefolder", "--data", images, "--network", "timm:test_resnet",
             "--train_images", 0, "--batch_size", 8, "--density_list", "0.5", "--epochs", 1,
             "--input_size", 32, "--output_size", 32, "--label_mapping_mode", "none"]  # fmt: skip
    path = run(tmp_path / "runs", *words).folder / "d0.5/model.safetensors"
    assert call("--export", path, "--to", tmp_path / "d", "--data", images, *CPU).code == 0
    network = timm.create_model(f"local-dir:{tmp_path / 'd'}", pretrained=True).eval()
    view = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    names, right = network.pretrained_cfg["label_names"], 0
    for picture, name in labelled(images):
        logits = network(view(Image.open(picture).convert("RGB"))[None])
        right += names[int(logits.argmax())] == name
    assert 100 * right / 12 == pytest.approx(expected(path, images, "clean"), abs=0.01)


def test_the_program_of_the_docs_gives_the_accuracy_that_evaluate_prints(images, tmp_path):
    words = ["--dataset", "imagefolder", "--data", images, "--network", "resnet18", "--weights",
             "none", "--train_images", 9, "--batch_size", 3, "--density_list", "0.5", "--epochs", 0,
             "--input_size", 24, "--output_size", 32, "--label_mapping_mode", "none"]  # fmt: skip
    path = run(tmp_path / "runs", *words).folder / "d0.5/model.safetensors"
    text = (ROOT / "docs/format.md").read_text()
    (source,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    source += (
        "\nimport sys, pathlib, numpy\nfrom PIL import Image\nright = [0, 0]\n"
        "for path in pathlib.Path(sys.argv[1]).glob('test/*/*.png'):\n"
        "    image = torch.from_numpy(numpy.array(Image.open(path))).permute(2, 0, 1)\n"
        "    for i in (0, 1): right[i] += classify(image, bool(i))[0] == path.parent.name\n"
        "print(*right)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", source, str(images)], cwd=path.parent,
                          capture_output=True, text=True, check=True)  # fmt: skip
    result = call("--evaluate", path, "--data", images, *CPU).result
    right = [round(12 * result[key] / 100) for key in ("clean", "prompted")]
    assert done.stdout.split() == [*map(str, right)]


# Small files


@pytest.fixture(scope="module")
def small(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "small.safetensors"
    assert call("--pack", model, "--to", path).result["bytes"] < 0.4 * model.stat().st_size
    return path


def test_a_packed_file_holds_the_same_to_the_bit(model, small):
    (packed, there), (tensors, about) = load_model(small), load_model(model)
    assert packed.keys() == tensors.keys() and about.items() <= there.items()
    assert all(torch.equal(packed[name], tensor) for name, tensor in tensors.items())
    assert not any(packed[name][packed[name] == 0].signbit().any() for name in about["masks"])


def test_a_packed_file_is_measured_and_starts_a_run_like_the_plain_one(
    model, small, images, tmp_path
):
    assert expected(small, images) == expected(model, images)
    chances = [load_pruned(path)[0](torch.ones(1, 3, 9, 9)) for path in (model, small)]
    assert torch.equal(*chances)
    mapping = meta(model)["config"]["label_mapping_mode"]
    words = ["--dataset", "imagefolder", "--data", images, "--train_images", 0, "--batch_size", 8,
             "--input_size", 12, "--output_size", 16, "--epochs", 0, "--label_mapping_mode",
             mapping, "--init_from"]  # fmt: skip
    plain, packed = (run(tmp_path / path.stem, *words, path) for path in (model, small))
    assert plain.result["rows"] == packed.result["rows"]


def test_halved_weights_are_close_and_others_the_same(model, tmp_path):
    call("--pack", model, "--half", "--to", tmp_path / "half.safetensors")
    (packed, _), (tensors, about) = load_model(tmp_path / "half.safetensors"), load_model(model)
    for name, tensor in tensors.items():
        same = tensor.half().float() if name in about["masks"] else tensor
        assert torch.equal(packed[name], same)


def about_shapes(shapes: object):
    """A change of what a packed file says of its weights."""
    text = zlib.compress(json.dumps({"packed": shapes}).encode())
    return lambda t: t | {META: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


CHANGES = {
    "absurd sizes": about_shapes({"conv1.weight": [2**30, 2**9]}),
    "sizes below zero": about_shapes({"conv1.weight": [-1, 3]}),
    "no sizes": about_shapes(["conv1.weight"]),
    "a list without end": about_shapes({"conv1.weight": [1] * 9}),
    "values": lambda t: t | {VALUES: t[VALUES][:-1].clone()},
    "bits": lambda t: t | {"vpns.bits": t["vpns.bits"][:-3].clone()},
    "no bits": lambda t: {n: v for n, v in t.items() if n != "vpns.bits"},
    "meta": lambda t: t | {META: t[META][:-9].clone()},
    "a bit": lambda t: t | {"vpns.bits": t["vpns.bits"] ^ (torch.arange(len(t["vpns.bits"])) == 9)},
    "a bomb": lambda t: t | {"vpns.bits": torch.frombuffer(bytearray(BOMB), dtype=torch.uint8)},
}
BOMB = zlib.compress(bytes(10**7))


@pytest.mark.parametrize("case", CHANGES)
def test_a_damaged_packed_file_is_refused_by_name(small, tmp_path, case):
    path = tmp_path / "bad.safetensors"
    save_file(CHANGES[case](load_file(small)), path)
    done = call("--evaluate", path, *CPU)
    assert done.code == 1 and f"{path} is damaged" in done.error


def test_a_flipped_bit_of_a_packed_file_is_noticed(small, tmp_path):
    data = bytearray(small.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / small.name
    path.write_bytes(data)
    (tmp_path / f"{small.name}.sha256").write_bytes(Path(f"{small}.sha256").read_bytes())
    done = call("--evaluate", path, *CPU)
    assert done.code == 1 and "checksum mismatch" in done.error


# Profile


def test_a_profile_counts_weights_dead_outputs_and_arithmetic(model, monkeypatch):
    import program.profile as profiling

    times = {"eager": 1.0}
    monkeypatch.setattr(profiling, "latencies", lambda _: {"1": times, "32": times})
    found = call("--profile", model).result
    tensors, about = load_model(model)
    rows = {row["layer"]: row for row in found["layers"]}
    assert found["weights"] == sum(tensors[name].numel() for name in about["masks"])
    assert found["kept"] == sum(int((tensors[name] != 0).sum()) for name in about["masks"])
    first = tensors["conv1.weight"]
    assert rows["conv1"]["macs"] == first.numel() * 16 * 16  # one for each weight and place
    assert rows["conv1"]["effective"] == int((first != 0).sum()) * 16 * 16
    assert rows["conv1"]["dead"] == int((first == 0).flatten(1).all(1).sum())
    assert found["bytes"]["packed"] < found["bytes"]["plain"]


def test_a_profile_of_a_run_is_shown_by_its_report(model, monkeypatch, tmp_path):
    import program.profile as profiling

    times = {"eager": 2.5, "compiled": 1.25}
    monkeypatch.setattr(profiling, "latencies", lambda _: {"1": times, "32": times})
    assert call("--profile", model).code == 0
    report = partial(write_report, model.parents[1], "--out", tmp_path)
    assert report() == 0
    text = (tmp_path / "report.md").read_text()
    assert "### In use" in text and "| 1.25 | 1.25 |" in text
    profile = model.with_name("profile.json")
    for content in ('{"ms": {"1": {}, "32": {}}}', '{"ms": 1}', '{"macs": "<b>"}', "[]"):
        profile.write_text(content)
        assert report() == 0 and "### In use" not in (tmp_path / "report.md").read_text()
    profile.unlink()


# Smaller


@pytest.fixture(scope="module")
def compacted(images, tmp_path_factory) -> tuple[Path, Path]:
    """A model file with dead channels, and the folder of the same network without them."""
    folder = tmp_path_factory.mktemp("compacted")
    words = ["--dataset", "imagefolder", "--data", images, "--weights", "fashion_mnist",
             "--train_images", 0, "--batch_size", 8, "--density_list", "0.5", "--epochs", 2,
             "--input_size", 12, "--output_size", 16, "--granularity", "channel"]  # fmt: skip
    source = run(folder, *words).folder / "d0.5/model.safetensors"
    with pytest.MonkeyPatch.context() as patch:  # its times are not looked at, and take long
        patch.setattr("program.profile.has_onnx", lambda: False)
        done = call("--compact", source, "--to", folder / "small", "--data", images, *CPU)
    assert done.code == 0, done.err
    return source, folder / "small"


def test_a_compacted_network_is_smaller_and_gives_the_same(compacted, images):
    source, folder = compacted
    proof = json.loads((folder / "compact.json").read_text())
    assert max(proof["differences"].values()) < 1e-5 and len(proof["differences"]) == 4
    for name in ("filters", "parameters", "multiply-adds"):
        before, now = proof[name]
        assert now < 0.8 * before
    assert set(proof["milliseconds"]) == {"1", "32"}
    small = folder / "model.safetensors"
    assert expected(small, images) == expected(source, images)
    assert expected(small, images, "clean") == expected(source, images, "clean")
    assert sum(t.numel() for t in load_file(small).values()) < 0.6 * sum(
        t.numel() for t in load_file(source).values()
    )


def test_a_compacted_file_is_used_like_any_other(compacted, images, tmp_path):
    small = compacted[1] / "model.safetensors"
    for picture, _ in labelled(images)[:3]:
        lines = [call("--predict", picture, "--model", path, *CPU).out.splitlines()[0]
                 for path in (compacted[0], small)]  # fmt: skip
        assert lines[0] == lines[1]
    packed = call("--pack", small, "--to", tmp_path / "packed.safetensors", *CPU)
    assert packed.code == 0
    assert expected(tmp_path / "packed.safetensors", images) == expected(small, images)


def test_build_network_makes_a_compacted_network_from_its_file(compacted):
    small = compacted[1] / "model.safetensors"
    network, widths = build_network("resnet20", str(small)), meta(small)["widths"]
    assert widths and all(
        list(network.state_dict()[name].shape) == shape for name, shape in widths.items()
    )
    with pytest.raises(VPNsError, match="do not fit resnet32"):
        build_network("resnet32", str(small))


def test_a_compacted_network_is_trained_on_and_measured(compacted, images, tmp_path):
    small = compacted[1] / "model.safetensors"
    words = ["--dataset", "imagefolder", "--data", images, "--weights", small, "--train_images", 0,
             "--batch_size", 8, "--input_size", 12, "--output_size", 16, "--density_list", "0.5",
             "--epochs", 1]  # fmt: skip
    done = run(tmp_path, *words)
    row, path = done.result["rows"][0], done.folder / "d0.5/model.safetensors"
    parts = sum(t.numel() for n, t in load_file(small).items() if n in meta(small)["masks"])
    assert (row["prunable"], row["kept"]) == (parts, parts - parts // 2)
    assert expected(path, images, "clean") == row["clean"]
    assert run(tmp_path, *words).result["read"] == [0.5]


def test_the_folder_of_the_source_is_never_written_over(compacted):
    for flag in ("--compact", "--export"):
        done = call(flag, compacted[0], "--to", compacted[0].parent, *CPU)
        assert done.code == 2 and "is the folder of" in done.error


WIDTHS = {
    "wider": {"conv1.weight": [99, 3, 3, 3]}, "no list": {"conv1.weight": 5}, "a list": [1, 2],
    "an unknown name": {"conv9.weight": [1]}, "nothing": {"conv1.weight": []},
    "a head of another kind": {"fc.weight": [10]}, "a word": "narrow", "other widths": {},
    "no numbers": {"conv1.weight": ["16", 3, 3, 3]}, "below zero": {"bn1.bias": [-3]},
}  # fmt: skip


@pytest.mark.parametrize("case", WIDTHS)
def test_a_file_with_widths_that_cannot_be_is_refused(compacted, images, tmp_path, case):
    tensors, about = load_model(compacted[1] / "model.safetensors")
    path = tmp_path / "strange.safetensors"
    text = json.dumps(about | {"widths": WIDTHS[case]})
    save_file(tensors, path, metadata={"vpns": text})
    train = ["--dataset", "imagefolder", "--data", images, "--network", "resnet20", "--save_dir",
             tmp_path, "--weights", path]  # fmt: skip
    for words in (["--predict", tmp_path, "--model", path], ["--evaluate", path, "--data", images],
                  train):  # fmt: skip
        done = call(*words, *CPU)
        assert done.code == 1 and path.name in done.error and "a bug" not in done.error
