"""The benchmarks' contenders: the same search as ours, on the same networks."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import lite0, pictures, reference
from benchmarks.step import build_model, random_pair, search, with_scores
from data.load import DataConfig, load_data
from models.backbones import backbone, build_network
from models.classifier import PromptedClassifier
from pruning.masks import prunable

STEPS, DENSITY = 2, 0.2


@pytest.fixture(scope="module")
def model() -> PromptedClassifier:
    """ResNet-18 on images of 16 px."""
    return build_model("resnet18", 16)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "resnet20"])
def test_the_reference_scores_every_layer_that_we_prune(name: str) -> None:
    network = build_network(name, "none")
    ours = {n: weight.shape for n, weight in prunable(network).items()}
    masks = reference.score_masks(reference.add_scores(network))
    assert {n: mask.scores.shape for n, mask in masks.items()} == ours


def test_the_reference_has_as_many_scores_as_resnet18_has_weights(
    model: PromptedClassifier,
) -> None:
    masks = reference.score_masks(with_scores(model, DENSITY).network).values()
    sizes = [mask.scores.numel() for mask in masks]
    assert (len(sizes), sum(sizes)) == (21, 11_678_912)


def test_the_search_of_the_reference_is_ours(model: PromptedClassifier) -> None:
    pair, theirs = random_pair(16, 8), with_scores(model, DENSITY)
    start, ours = reference.masks(theirs.network), copy.deepcopy(model)
    masks = search(ours, pair, DENSITY, [None] * STEPS, STEPS)
    phase = reference.search(theirs, DENSITY)
    for _ in range(STEPS):
        phase.iteration(*pair)
    end = reference.masks(theirs.network)
    assert set(masks) == set(end)
    differing = sum(int((masks[name] != end[name]).sum()) for name in masks)
    assert differing <= 20  # of 11.7 million: scores that lie within rounding of the threshold
    assert sum(int((masks[name] != start[name]).sum()) for name in masks) > 1000
    prompts = [m.prompt.program * m.prompt.region for m in (ours, theirs)]
    torch.testing.assert_close(*prompts, rtol=0, atol=2e-7)
    assert prompts[0].abs().max() > 1e-4


@pytest.mark.parametrize(("size", "side"), [(1, 3), (2, 5), (3, 5), (4, 5), (2, 3)])
def test_the_faster_gradient_of_a_depthwise_layer_is_torchs(size: int, side: int) -> None:
    x = torch.randn(6, 8, size, size, dtype=torch.double, requires_grad=True)
    weight = torch.randn(8, 1, side, side, dtype=torch.double, requires_grad=True)
    ours = lite0.PairedGradient.apply(x, weight)
    theirs = torch.nn.functional.conv2d(x, weight, padding=side // 2, groups=8)
    assert torch.equal(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), (x, weight))
                            for out in (ours, theirs)), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other)


def test_the_faster_lite0_is_the_network_of_timm() -> None:
    pytest.importorskip("timm", reason="an extra")
    plain, fast = backbone(lite0.NETWORK).build(10), lite0.lite0(10)
    fast.load_state_dict(plain.state_dict())
    images = torch.rand(4, 3, 48, 48)
    assert torch.equal(plain(images), fast(images))
    assert sum(isinstance(layer, lite0.SmallMaps) for layer in fast.modules()) > 4
    for network in (plain, fast):
        network(images).logsumexp(1).mean().backward()
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def written(folder: Path) -> dict[str, bytes]:
    """The content of every picture of a part, by class and number."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a part of the digits."""

    def write(name: str, *words: str) -> Path:
        flags = ["--dataset", "digits", "--train", "100", "--test", "50", *words]
        monkeypatch.setattr("sys.argv", ["pictures", *flags, "--to", str(tmp_path / name)])
        pictures.main()
        return tmp_path / name

    return write


def test_pictures_are_the_choice_of_train_images(small: Callable[..., Path]) -> None:
    config = DataConfig(dataset="imagefolder", data=str(small("a")), augment="none", workers=0)
    own = load_data(config, 8, 100, torch.device("cpu"))
    digits = replace(config, dataset="digits", data=None, train_images=100)
    chosen = load_data(digits, 8, 100, torch.device("cpu"))
    ours, theirs = ([batch for batch, _ in data.prompted.batches("x")] for data in (own, chosen))
    rows = [torch.cat(batches).flatten(1).sort(dim=0).values for batches in (ours, theirs)]
    assert torch.equal(*rows)


def test_validation_pictures_are_other_training_images(small: Callable[..., Path]) -> None:
    test, validation = small("a"), small("b", "--validation")
    assert written(test / "train") == written(validation / "train")
    held = {*written(validation / "test").values()}
    assert not held & {*written(validation / "train").values()} and len(held) == 50
    assert held != {*written(test / "test").values()}
