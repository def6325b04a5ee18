"""Networks with attention, embeddings, shared weights or a layer that nothing goes through."""

import pytest
import torch
import torchvision
from cli import run
from conftest import SIZE, SOURCES, MemoryLog, TinyData, tiny_model
from searches import BOTH, SCORES, find
from torch import Tensor, nn

from models.classifier import PromptedClassifier
from prompts import Sizes, build_prompt
from pruning import METHODS
from pruning.masks import all_kept, apply_masks, kept_count, prunable
from pruning.scores import LearnedScores
from pruning.stage import CLEAN, Stage
from pruning.training import run_stage

ALL = pytest.mark.parametrize("name", METHODS)
WIDTH = 6


class Attentive(nn.Module):
    """Patches of an image, a learned place for each, one attention block, and a head."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.places = nn.Embedding((SIZE // 4) ** 2, WIDTH)
        self.attention, self.norm = attention, nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, SOURCES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places.weight
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(self.norm(tokens + mixed).mean(1))


class Idle(nn.Module):
    """A network with a layer, as an auxiliary head, that takes no part in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Conv2d(3, 5, 3, padding=1)
        self.idle = nn.Linear(5, 7)
        self.head = nn.Linear(5, SOURCES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.used(x).relu().mean((2, 3)))


class Tied(nn.Module):
    """A network in which two layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.head = nn.Linear(WIDTH, SOURCES)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.patches(x).mean((2, 3))
        return self.head(self.second(self.first(pixels).relu()))


def attentive() -> nn.Module:
    """Attention whose projections are packed in one weight."""
    return Attentive(nn.MultiheadAttention(WIDTH, 2, batch_first=True))


NETWORKS = {"attention": attentive, "idle layer": Idle, "tied weights": Tied}


def classifier(network: nn.Module) -> PromptedClassifier:
    model = PromptedClassifier(network, build_prompt("pad", Sizes(SIZE, SIZE, 2, 4)))
    model.label_map = tiny_model().label_map
    return model


def built(kind: str) -> PromptedClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return classifier(NETWORKS[kind]())


@ALL
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_method_prunes_it_to_the_exact_count(name: str, kind: str) -> None:
    found = find(name, model=built(kind), views=BOTH)
    total = sum(weight.numel() for weight in prunable(found.model.network).values())
    assert kept_count(found.masks) == total - int((1 - found.search.density) * total)
    weights = prunable(found.model.network)
    assert not any(weights[n][~mask].any() for n, mask in found.masks.items())


def test_the_projections_of_attention_are_prunable_and_embeddings_are_not() -> None:
    assert list(prunable(attentive())) == [
        "patches.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"
    ]  # fmt: skip


def test_projections_of_different_widths_are_prunable_apart() -> None:
    attention = nn.MultiheadAttention(WIDTH, 2, kdim=4, vdim=5)
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    assert list(prunable(attention)) == names


def test_all_of_a_vision_transformers_matrices_are_prunable() -> None:
    with torch.device("meta"):
        network = torchvision.models.vit_b_16()
    width, blocks = 768, 12
    matrices = blocks * (4 + 8) * width**2 + 3 * 16 * 16 * width + 1000 * width
    assert sum(weight.numel() for weight in prunable(network).values()) == matrices


def test_a_shared_weight_is_counted_and_masked_once() -> None:
    network = Tied()
    masks = all_kept(network)
    assert "first.weight" in masks and "second.weight" not in masks
    masks["first.weight"][0] = False
    apply_masks(network, masks)
    assert not network.second.weight[0].any()


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_a_layer_without_influence_has_no_saliency(name: str) -> None:
    used = {"used.weight", "head.weight"}
    found = find(name, model=built("idle layer"), density=0.5)
    shares = {n: mask.float().mean() for n, mask in found.masks.items()}
    assert shares["idle.weight"] < min(shares[n] for n in used)


def test_only_the_scores_of_a_layer_without_influence_stay() -> None:
    model = built("idle layer")
    learned = LearnedScores(model.network, 0.5)
    before = {name: score.detach().clone() for name, score in learned.scores.items()}
    group = learned.group(SCORES)
    stage = Stage(
        "search", 1, (group,), (CLEAN,), tuple(learned.weights.values()),
        gradients=learned.gradients, renew=learned.renew,
    )  # fmt: skip
    run_stage(model, stage, TinyData(), MemoryLog())
    unmoved = [name for name, score in learned.scores.items() if torch.equal(score, before[name])]
    assert unmoved == ["idle.weight"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--network", "vgg16", "--input_size", 16, "--output_size", 16, "--batch_size", 60],
         "vgg16 cannot train on images of 16 px"),
        (["--network", "resnet18", "--batch_size", 119, "--input_size", 32, "--output_size", 32],
         "resnet18 cannot train on one image of 32 px"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_take_its_images_is_told_before_the_first_step(
    tmp_path, words, reason
) -> None:
    done = run(tmp_path, *words, "--density_list", "0.1")
    assert done.code == 2 and reason in done.error
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("metrics.jsonl"))
