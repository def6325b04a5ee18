"""The benchmarks' contenders: the same search as ours, on the same networks."""

import copy

import pytest
import torch

from benchmarks import reference
from benchmarks.step import build_model, random_pair, search, with_scores
from models.backbones import build_network
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
