"""The dense network that is trained first: learning from its logits, and where it comes from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli import at_call, call, fork, forked, hashes, run, send
from conftest import MemoryLog, TinyData, tiny_model
from searches import BOTH, find
from torch import Tensor

from program.folder import run_folder
from program.settings import read_config
from program.teacher import dense_config
from pruning import METHODS
from pruning.stage import CLEAN, PROMPTED, Group, Stage
from pruning.training import run_stage
from runfolder.stage_log import StageLog
from utils.optim import Optim, OptimConfig
from utils.recipe import Recipe

QUICK = ["--density_list", "0.1", "--eval_every", 0, "--input_size", 8, "--output_size", 8,
         "--epochs", 1]  # fmt: skip


class Teacher:
    """Logits that tell the images apart, and what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return images.flatten(1)[:, :4] * 5


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(("share", "heat"), [(0.5, 4.0), (0.9, 1.0), (1.0, 2.0)])
def test_the_loss_is_hintons(share, heat):
    logits, taught = torch.randn(6, 4) * 3, torch.randn(6, 4) * 3
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    wanted, found = softmax(taught.numpy() / heat), softmax(logits.numpy() / heat)
    soft = (wanted * np.log(wanted / found)).sum(1).mean() * heat**2
    hard = -np.log(softmax(logits.numpy())[range(6), labels.numpy()]).mean()
    loss = Recipe(distill_share=share, distill_temperature=heat).loss(logits, labels, taught)
    assert float(loss) == pytest.approx((1 - share) * hard + share * soft, rel=1e-5)


def test_without_a_share_nothing_is_learned_from_it() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    assert Recipe(distill_share=0).loss(logits, labels, -logits) == Recipe().loss(logits, labels)


def test_the_teacher_sees_each_batch_without_the_prompt() -> None:
    model, data, teach, log = tiny_model(), TinyData(), Teacher(), MemoryLog()
    torch.nn.init.constant_(model.prompt.program, 0.5)
    group = Group(tuple(model.network.parameters()), Optim(OptimConfig()))
    run_stage(model, Stage("finetune", 1, (group,), BOTH, teach=teach), data, log)
    views = [getattr(data, view).batches(*log.key, "finetune", 0) for view in (PROMPTED, CLEAN)]
    shown = [images for pair in zip(*views, strict=True) for images, _ in pair]
    assert all(map(torch.equal, teach.seen, shown)) and len(teach.seen) == len(shown)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.learns or m.trains])
def test_every_search_that_trains_under_a_mask_learns_from_it(name):
    teach = Teacher()
    plain, taught = find(name, epochs=2), find(name, epochs=2, teach=teach)
    assert teach.seen
    assert not all(map(torch.equal, plain.model.state_dict().values(),
                       taught.model.state_dict().values())) or not all(
        torch.equal(plain.masks[key], mask) for key, mask in taught.masks.items())  # fmt: skip


@pytest.mark.parametrize("name", ["omp", "snip", "grasp", "synflow", "random"])
def test_a_mask_of_a_dense_network_is_the_same_with_it(name):
    plain, taught = find(name), find(name, teach=Teacher())
    assert all(torch.equal(plain.masks[key], mask) for key, mask in taught.masks.items())


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A run with --distill."""
    return run(tmp_path_factory.mktemp("run"), *QUICK, "--distill")


def dense_of(done) -> Path:
    (folder,) = done.folder.parents[1].glob("*-dense/*")
    return folder


def test_the_dense_network_is_a_run_of_its_own_with_the_passes_of_a_level(distilled):
    dense = (dense_of(distilled) / "results.csv").read_text().splitlines()
    assert len(dense) == 2 and distilled.result["rows"][0]["passes"] == 4
    assert "finetune epoch 4 of 4" in distilled.out
    assert distilled.result["method"] == "vpns"


def test_it_is_trained_once_for_all_that_need_it(distilled):
    save_dir = distilled.folder.parents[2]
    for words in (["--density_list", 0.2], ["--prune_method", "hydra", "--epochs", 2]):
        again = run(save_dir, *QUICK, *words, "--distill", "--score_lr", 0.01)
        assert again.code == 0 and "density 1 finetune" not in again.out
        dense_of(again)


def test_a_file_of_it_does_the_same(tmp_path, distilled):
    model = dense_of(distilled) / "d1/model.safetensors"
    named = run(tmp_path, *QUICK, "--distill", model)
    weights = "d0.1/model.safetensors"
    assert torch.equal(*(tensors(done.folder / weights) for done in (named, distilled)))
    plain = run(tmp_path / "plain", *QUICK)
    assert not torch.equal(*(tensors(done.folder / weights) for done in (named, plain)))


def tensors(path: Path) -> Tensor:
    from safetensors.torch import load_file

    return torch.cat([tensor.flatten().double() for tensor in load_file(path).values()])


def test_a_search_from_it_is_one_from_its_file(tmp_path, distilled):
    model = dense_of(distilled) / "d1/model.safetensors"
    from_it = run(distilled.folder.parents[2], *QUICK, "--from_dense")
    named = run(tmp_path, *QUICK, "--weights", model)
    assert from_it.code == 0 and "density 1 finetune" not in from_it.out
    assert from_it.result["rows"] == named.result["rows"]
    weights = "d0.1/model.safetensors"
    assert torch.equal(*(tensors(done.folder / weights) for done in (named, from_it)))


def test_scores_over_it_are_measured_over_it_alone(tmp_path):
    done = run(tmp_path, *QUICK, "--from_dense", "--keep_states")
    (state,) = done.folder.glob("d0.1/search-*.pt")
    alone = call("--evaluate", state, "--device", "cpu")
    assert alone.code == 2 and "with --weights" in alone.error
    dense = dense_of(done) / "d1/model.safetensors"
    found = run(tmp_path, "--evaluate", state, "--weights", dense).result
    assert found["clean"] == done.result["rows"][0]["after_search"]


def test_a_run_is_resumed_by_a_path_from_within(tmp_path, distilled, monkeypatch):
    monkeypatch.chdir(distilled.folder.parent)
    words = [*QUICK, "--distill", "--resume", distilled.folder.name]
    again = run(distilled.folder.parents[2], *words, "--density_list", "0.2")
    assert again.code == 0 and again.result["run"] == str(distilled.folder)


@pytest.mark.parametrize("call", [pytest.param(2, marks=pytest.mark.slow), 9])
def test_a_run_that_is_stopped_in_either_network_goes_on_bit_identically(tmp_path, call):
    stop = (StageLog, "answer_stop", call, send("SIGTERM"), False)
    words = [*QUICK, "--distill", "--from_dense"]  # eight dense steps, then two and two
    stopped = forked(tmp_path / "stopped", *words, before=lambda: at_call(*stop))
    assert stopped.code == 75
    whole, again = run(tmp_path / "whole", *words), run(tmp_path / "stopped", *words)
    assert hashes(again.folder) == hashes(whole.folder)


def test_two_runs_at_once_train_it_once(tmp_path):
    words = [[*QUICK, "--distill", "--epochs", epochs, "--prune_method", name]
             for name, epochs in (("vpns", 1), ("hydra", 2))]  # fmt: skip
    place = ["--save_dir", tmp_path / "runs"]
    waits = [fork(tmp_path / each[-1], *each, *place, before=lambda: None) for each in words]
    both = [wait() for wait in waits]
    assert [done.code for done in both] == [0, 0]
    assert sum("density 1 finetune epoch 4 of 4" in done.out for done in both) == 1


@pytest.fixture
def own_runs(tmp_path, distilled):
    """A copy of the experiment with the finished dense network."""
    shutil.copytree(distilled.folder.parents[2], tmp_path / "runs")
    return tmp_path / "runs"


def test_a_damaged_dense_network_is_made_again(own_runs):
    (model,) = own_runs.rglob("*-dense/*/d1/model.safetensors")
    good = model.read_bytes()
    model.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    again = run(own_runs, *QUICK, "--distill", "--density_list", 0.3)
    assert again.code == 0 and model.read_bytes() == good


def test_a_dense_network_of_other_images_is_refused(own_runs):
    (env,) = own_runs.rglob("*-dense/*/env.json")
    env.write_text(env.read_text().replace('"data": "', '"data": "0'))
    done = run(own_runs, *QUICK, "--distill", "--density_list", 0.3)
    assert done.code == 4 and "was trained on other images: move it away" in done.error


def test_the_dense_network_has_the_canvas_that_its_images_need(tmp_path):
    words = ["--dataset", "digits", "--network", "resnet20", "--input_size", "32"]
    config, _ = read_config([*words, "--distill", "--score_lr", "0.1", "--epochs", "3"])
    dense = dense_config(config, tmp_path / "a/b/c/d")
    alone, _ = read_config([*words, "--prune_method", "dense", "--epochs", "12"])
    assert run_folder(dense).name == run_folder(alone).name
    assert run_folder(dense).parents[2] == tmp_path / "a" and dense.sizes.output == 32


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--distill", "nowhere.safetensors"], 1, "nowhere.safetensors does not exist"),
        (["--distill", __file__], 1, "test_distill.py"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, words, code, line):
    done = run(tmp_path, *QUICK, *words)
    assert done.code == code and line in done.error and "Traceback" not in done.err


def test_a_network_of_other_classes_is_refused(tmp_path, distilled):
    from PIL import Image

    for name in ("a", "b", "c"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            path = tmp_path / "pictures" / name / f"{number}.png"
            Image.new("RGB", (8, 8), (number, number, number)).save(path)
    own = ["--dataset", "imagefolder", "--data", tmp_path / "pictures", "--batch_size", 8,
           "--train_images", 0]  # fmt: skip
    model = dense_of(distilled) / "d1/model.safetensors"
    done = run(tmp_path / "runs", *QUICK, *own, "--distill", model)
    assert done.code == 2 and "10 classes apart, not 3" in done.error
