"""metrics.json: top-5, classes, confusions and calibration, against counting by hand."""

import csv
import json
from pathlib import Path

import pytest
import torch
from cli import call, meta, run
from conftest import TinyData, tiny_model
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from pruning.breakdown import BINS, Breakdown
from pruning.measure import evaluate
from utils.packed import packed_bytes
from utils.tensors import read_tensors

QUICK = ["--density_list", "0.2,0.1", "--eval_every", 0, "--input_size", 8, "--output_size", 8]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), *QUICK)


def guesses(model, view):
    """Labels, probabilities (N, C) of a view."""
    model.eval()
    with torch.no_grad():
        parts = [(y, model(x).softmax(1)) for x, y in view.batches()]
    return (torch.cat(column) for column in zip(*parts, strict=True))


def broken_down(model, view) -> Breakdown:
    seen = Breakdown(model.classes)
    evaluate(model, view, also=seen.add)
    return seen.of_all()


def test_confusions_are_those_of_scikit_learn() -> None:
    model, view = tiny_model(), TinyData().test
    found = broken_down(model, view)
    pairs = found.pairs
    labels, chances = guesses(model, view)
    expected = confusion_matrix(labels, chances.argmax(1), labels=range(model.classes))
    assert pairs.tolist() == expected.tolist()
    assert found.numbers(())["accuracy"] == pytest.approx(
        evaluate(model, view).accuracy, abs=1e-4)  # fmt: skip


def test_the_calibration_error_is_guos() -> None:
    model, view = tiny_model(), TinyData().test
    labels, chances = guesses(model, view)
    sure, said = chances.max(1)
    expected = 0.0
    for low in range(BINS):
        inside = (sure >= low / BINS) & (sure < (low + 1) / BINS)
        if inside.any():
            gap = (said[inside] == labels[inside]).double().mean() - sure[inside].double().mean()
            expected += float(inside.double().mean() * gap.abs())
    found = broken_down(model, view).numbers(())["calibration_error"]
    assert found == pytest.approx(expected, abs=1e-5)


def test_top5_is_scikit_learns_and_there_for_more_than_ten_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(200, 12, generator=generator)
    labels = torch.arange(200) % 12

    class Guesser(torch.nn.Module):
        classes = 12

        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, rows, prompted=False):
            return chances[rows].log()

    class View:
        def batches(self):
            yield from zip(torch.arange(200).split(64), labels.split(64), strict=True)

    found = broken_down(Guesser(), View()).numbers(())
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, chances, k=5))
    assert "top5" not in broken_down(tiny_model(), TinyData().test).numbers(())


def test_a_class_without_images_has_no_accuracy() -> None:
    found = Breakdown(2)
    found.add(torch.tensor([[1.0, 0], [1.0, 0]]), torch.tensor([0, 0]))
    assert found.numbers(("cat", "dog"))["classes"] == {"cat": 100.0, "dog": None}


def test_a_level_has_its_numbers_beside_its_model(done) -> None:
    row = done.result["rows"][0]
    found = json.loads((done.folder / "d0.2/metrics.json").read_text())
    assert found["clean"]["accuracy"] == row["clean"]
    assert found["prompted"]["accuracy"] == row["prompted"]
    assert found["clean"]["images"] == 360 and len(found["clean"]["classes"]) == 10
    head, *rows = csv.reader((done.folder / "d0.2/confusion.csv").open())
    assert head == ["class", *map(str, range(10))]
    assert sum(int(cell) for line in rows for cell in line[1:]) == 360
    assert (done.folder / "d0.2/confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_a_row_tells_arithmetic_and_bytes(done, monkeypatch) -> None:
    monkeypatch.setattr("program.profile.latencies", lambda *_: {})  # which take long
    sparse, sparser = done.result["rows"]
    assert sparser["macs"] < sparse["macs"] and sparser["packed_bytes"] < sparse["packed_bytes"]
    path = done.folder / "d0.1/model.safetensors"
    assert sparser["packed_bytes"] == packed_bytes(read_tensors(path), meta(path)["masks"])
    profiled = call("--profile", path, "--clean").result
    assert sparser["macs"] == profiled["effective"]


def test_an_evaluation_tells_details_and_writes_them(done, tmp_path: Path) -> None:
    path = done.folder / "d0.1/model.safetensors"
    measured = call("--evaluate", path, "--details", "--to", tmp_path / "out", "--device", "cpu")
    kept = json.loads((done.folder / "d0.1/metrics.json").read_text())
    assert measured.result["details"] == kept
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == kept
    assert (tmp_path / "out/confusion.png").exists()
    plain = call("--evaluate", path, "--device", "cpu")
    assert "details" not in plain.result


def test_rows_of_runs_can_be_joined(done) -> None:
    first = next(csv.DictReader((done.folder / "results.csv").open()))
    named = {name: first[name] for name in ("network", "dataset", "method", "seed")}
    assert named == {"network": "resnet20", "dataset": "digits", "method": "vpns", "seed": "7"}


def test_a_model_of_before_has_no_cost_and_is_not_made_again(done) -> None:
    from runfolder.run import read_row

    path = done.folder / "d0.1/model.safetensors"
    about = meta(path)
    del about["result"]["macs"], about["result"]["packed_bytes"]
    assert read_row(path, about)["macs"] is None
