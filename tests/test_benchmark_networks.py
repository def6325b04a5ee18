"""The benchmarks' contenders: the same search as ours, on the same networks."""

import pytest
import torch

from benchmarks import reference
from benchmarks.contenders import Bench, Case
from models.backbones import build_network
from pruning.masks import prunable

STEPS = 2


@pytest.fixture(scope="module")
def bench() -> Bench:
    """ResNet-18 on images of 16 px."""
    return Bench(Case("resnet18", 16, 4))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "resnet20"])
def test_the_reference_scores_every_layer_that_we_prune(name: str) -> None:
    network = build_network(name, "none")
    ours = {n: weight.shape for n, weight in prunable(network).items()}
    layers = reference.scored(reference.add_scores(network)).items()
    assert {f"{n}.weight": layer.popup_scores.shape for n, layer in layers} == ours


def test_the_reference_has_as_many_scores_as_resnet18_has_weights(bench: Bench) -> None:
    layers = reference.scored(bench.scored())
    sizes = [layer.popup_scores.numel() for layer in layers.values()]
    assert (len(sizes), sum(sizes)) == (21, 11_678_912)


def test_a_step_without_moves_leaves_the_dense_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Case("resnet20", 8, 4))
    model = bench.dense_model()
    monkeypatch.setattr(bench, "dense_model", lambda: model)
    before = model.network.conv1.weight.clone()
    bench.dense(moves=False)()
    assert torch.equal(model.network.conv1.weight, before)
    bench.dense()()
    assert not torch.equal(model.network.conv1.weight, before)


def test_the_search_of_the_reference_is_ours(bench: Bench) -> None:
    ours, masks = bench.search([None] * STEPS, STEPS)
    model = bench.scored().train()
    phase = reference.search(model, bench.case.density)
    for pair in zip(bench.prompted[:STEPS], bench.clean[:STEPS], strict=True):
        phase.iteration(*pair)
    theirs = reference.masks(model.network)
    assert set(masks) == set(theirs)
    differing = sum(int((masks[name] != theirs[name]).sum()) for name in masks)
    assert differing <= 20  # of 11.7 million: scores that lie within rounding of the threshold
    start = reference.masks(bench.scored().network)
    assert sum(int((masks[name] != start[name]).sum()) for name in masks) > 1000
    prompt = ours.prompt.program * ours.prompt.region
    torch.testing.assert_close(prompt, model.program * model.frame, rtol=0, atol=2e-7)
    assert prompt.abs().max() > 1e-4
