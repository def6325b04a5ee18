"""The benchmarks' contenders: ordinary networks for the others, and the same search as ours."""

import pytest
import torch
from torch import nn

from benchmarks import reference
from benchmarks.contenders import Bench, Case
from benchmarks.plain import plain_network
from models.backbones import NETWORKS, build_network
from models.stem import Stem
from pruning.masks import prunable

STEPS = 2


@pytest.fixture(scope="module")
def bench() -> Bench:
    """ResNet-18 on images of 16 px: its first convolution has a stride, and in ours is a Stem."""
    return Bench(Case("resnet18", 16, 4))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "resnet20"])
def test_a_plain_network_has_our_values_in_torch_s_own_layers(name: str) -> None:
    plain, ours = plain_network(name, 3), build_network(name, "none", seed=3)
    assert not any(isinstance(layer, Stem) for layer in plain.modules())
    layers = zip(plain.modules(), NETWORKS[name].build(10).modules(), strict=True)
    assert all(type(layer) is type(other) for layer, other in layers)
    state = plain.state_dict()
    assert list(state) == list(ours.state_dict())
    assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())
    assert all(weight.requires_grad for weight in plain.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "resnet20"])
def test_the_reference_scores_every_layer_that_we_prune(name: str) -> None:
    network = reference.add_scores(plain_network(name))
    theirs = {n: layer.popup_scores.shape for n, layer in reference.scored(network).items()}
    ours = {n: weight.shape for n, weight in prunable(build_network(name, "none")).items()}
    assert theirs == ours


def test_the_reference_has_as_many_scores_as_resnet18_has_weights(bench: Bench) -> None:
    layers = reference.scored(bench.scored())
    sizes = [layer.popup_scores.numel() for layer in layers.values()]
    assert (len(sizes), sum(sizes)) == (21, 11_678_912)


def test_a_layer_that_is_not_torch_s_own_is_refused(bench: Bench) -> None:
    with pytest.raises(TypeError, match="^conv1 is a Stem"):
        reference.add_scores(bench.model().network)


def test_dense_training_and_the_reference_have_plain_layers(bench: Bench) -> None:
    assert type(bench.model().network.conv1) is Stem
    assert type(bench.dense_model().network.conv1) is nn.Conv2d
    assert type(bench.scored().network.conv1) is reference.ScoredConv2d


def test_a_step_without_moves_leaves_the_dense_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Case("resnet20", 8, 4))
    model = bench.dense_model()
    monkeypatch.setattr(bench, "dense_model", lambda: model)
    before = model.network.conv1.weight.clone()
    bench.dense(moves=False)()
    assert torch.equal(model.network.conv1.weight, before)
    bench.dense()()
    assert not torch.equal(model.network.conv1.weight, before)


def test_the_search_of_the_reference_is_ours_on_a_network_with_a_strided_stem(
    bench: Bench,
) -> None:
    ours, found = bench.search([None] * STEPS, STEPS)
    model = bench.scored().train()
    phase = reference.search(model, bench.case.density)
    for pair in zip(bench.prompted[:STEPS], bench.clean[:STEPS], strict=True):
        phase.iteration(*pair)
    theirs = reference.masks(model.network)
    assert set(found) == {name.removeprefix("network.") for name in theirs}
    differing = sum(int((found[name] != theirs[name]).sum()) for name in found)
    assert differing <= 20  # of 11.7 million: scores that lie within rounding of the threshold
    start = reference.masks(bench.scored().network)
    assert sum(int((found[name] != start[name]).sum()) for name in found) > 1000
    prompt = ours.prompt.program * ours.prompt.region
    torch.testing.assert_close(prompt, model.program * model.frame, rtol=0, atol=2e-7)
    assert prompt.abs().max() > 1e-4
