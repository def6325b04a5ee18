"""What is pruned together: N of every M weights, and whole channels."""

import itertools
import json
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from cli import call, run
from conftest import CLASSES, SIZE, tiny_model, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from searches import BOTH, make_search
from torch import Tensor, nn
from torch.func import functional_call

from models.channels import channels_of
from models.compact import compacted
from pruning import METHODS
from pruning.granularity import (
    ChannelRule,
    granularity_named,
    keep_pattern,
    pattern_count,
    pattern_of,
)
from pruning.masks import apply_masks, prunable
from pruning.scores import ChannelScores
from utils.errors import NumericError, UsageError

CPU = ("--device", "cpu", "--workers", 0)


# N of every M


def by_hand(score: Tensor, n: int, m: int) -> Tensor:
    """The pattern of one weight, group by group."""
    kept = torch.zeros_like(score, dtype=torch.bool)
    others = [range(size) for place, size in enumerate(score.shape) if place != 1]
    for place in itertools.product(*others):
        for start in range(0, score.shape[1], m):
            group = range(start, min(start + m, score.shape[1]))
            for i in sorted(group, key=lambda i: -score[(place[0], i, *place[1:])])[:n]:
                kept[(place[0], i, *place[1:])] = True
    return kept


@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (5, 16)]), st.integers(1, 19),
       st.integers(1, 3), st.integers(1, 2), st.integers(0, 99))  # fmt: skip
def test_a_pattern_keeps_the_highest_of_every_group(pattern, inputs, outputs, kernel, seed):
    (n, m), draw = pattern, torch.Generator().manual_seed(seed)
    score = torch.randint(-4, 5, (outputs, inputs, kernel, 1), generator=draw).float()  # ties
    mask = keep_pattern({"w": score}, n / m, 0.0, m)["w"]
    assert torch.equal(mask, by_hand(score, n, m))
    assert int(mask.sum()) == pattern_count(mask, n, m)


def test_a_short_last_group_keeps_as_many_or_all() -> None:
    score = torch.tensor([[6.0, 5, 4, 3, 9, 8, 7], [1, 2, 3, 4, 1, 3, 2]])
    mask = keep_pattern({"w": score}, 0.5, 0.0, 4)["w"]
    assert mask.int().tolist() == [[1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1, 1]]
    assert keep_pattern({"w": score[:, :1]}, 0.5, 0.0, 4)["w"].all()


def test_a_pattern_goes_along_the_inputs_of_each_position() -> None:
    score = torch.rand(5, 8, 3, 3)
    mask = keep_pattern({"w": score}, 0.5, 0.0, 4)["w"]
    assert (mask.view(5, 2, 4, 3, 3).sum(2) == 2).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_makes_no_pattern(bad):
    with pytest.raises(NumericError):
        keep_pattern({"w": torch.tensor([[1.0, bad, 2, 3]])}, 0.5, 0.0, 4)


OTHERS = ["nm", "nm:4:2", "nm:2:2", "nm:0:4", "nm:2:65", "nm:2", "nm:a:b", "nm:-1:4", "nm:2:4:8",
          "nm: 2:4", "filter", "", "nm:2.0:4"]  # fmt: skip


@pytest.mark.parametrize("word", OTHERS)
def test_other_granularities_are_refused(word):
    with pytest.raises(ValueError, match="is none of weight, channel and nm:N:M"):
        granularity_named(word)


def test_a_pattern_is_read() -> None:
    assert pattern_of("nm:2:4") == (2, 4)
    assert pattern_of("weight") is pattern_of("channel") is None


# Channels


def rule_for(network: nn.Module) -> ChannelRule:
    return ChannelRule(channels_of(network, SIZE))


def test_the_count_of_channels_is_exact() -> None:
    rule = rule_for(tiny_network())
    assert (rule.count, rule.sizes) == (16, [8, 8])
    for density in (0.9, 0.5, 0.25, 0.125):
        kept = rule.select(torch.rand(16), density, 0.0)
        assert int(kept.sum()) == 16 - int((1 - density) * 16)


def test_every_layer_keeps_a_channel() -> None:
    rule = rule_for(tiny_network())
    kept = rule.select(torch.arange(16.0), 0.25, 0.0)
    assert kept[:8].sum() == 1 and kept[8:].sum() == 3
    with pytest.raises(UsageError, match="density 0.1 keeps 2 channels|for 2 layers"):
        rule.select(torch.arange(16.0), 0.05, 0.0)


def test_a_channel_takes_its_filter_and_the_columns_that_read_it() -> None:
    network = tiny_network()
    rule, weights = rule_for(network), prunable(network)
    kept = torch.ones(16, dtype=torch.bool)
    kept[[2, 11]] = False
    masks = rule.masks(kept, weights)
    expected = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    expected["0.weight"][2], expected["3.weight"][:, 2] = False, False
    expected["3.weight"][3], expected["7.weight"][:, 3] = False, False
    assert all(torch.equal(mask, expected[name]) for name, mask in masks.items())


def test_the_score_of_a_channel_is_the_mean_over_its_weights() -> None:
    network = tiny_network()
    scores = {name: weight.detach().abs() for name, weight in prunable(network).items()}
    means = torch.tensor([[torch.cat([writer[c].flatten(), reader[:, c].flatten()]).mean()
                           for c in range(8)] for writer, reader in pairwise(scores.values())])
    expected = (means / means.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(rule_for(network).pooled(scores), expected)


class Residual(nn.Module):
    """A stem and a block whose sum the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b, self.norm, self.fc = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.fc((x + self.norm(self.b(self.a(x).relu()))).mean((2, 3)))


def test_a_residual_sum_is_one_channel() -> None:
    network = Residual()
    rule = rule_for(network)
    assert rule.count == 16
    masks = rule.masks(torch.arange(16) != 3, prunable(network))
    assert not masks["stem.weight"][3].any() and not masks["b.weight"][3].any()
    assert not masks["a.weight"][:, 3].any() and not masks["fc.weight"][:, 3].any()


@pytest.mark.parametrize("build", [tiny_network, Residual])
@pytest.mark.parametrize("density", [0.5, 0.25])
def test_masked_channels_are_those_that_compacting_removes(build, density):
    torch.manual_seed(0)
    network = build().eval()
    rule = rule_for(network)
    kept = rule.select(torch.rand(16), density, 0.0)
    apply_masks(network, rule.masks(kept, prunable(network)))
    small = compacted(network, SIZE)
    images = torch.rand(3, 3, SIZE, SIZE)
    torch.testing.assert_close(network(images), small(images), rtol=1e-5, atol=1e-6)
    assert rule_for(small).count == int(kept.sum())


def test_the_gradient_of_a_score_is_that_of_a_gate_where_it_is_read() -> None:
    network, images = tiny_network().eval(), torch.rand(4, 3, SIZE, SIZE)
    labels = torch.randint(0, 6, (4,))
    dense = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    learned = ChannelScores(network, 0.5, 0.0, rule_for(network))
    kept = learned.keep().float()
    gates = kept.clone().requires_grad_()
    gated = dense | {"3.weight": dense["3.weight"] * gates[:8, None, None],
                     "7.weight": dense["7.weight"] * gates[8:]}  # fmt: skip
    nn.functional.cross_entropy(functional_call(network, gated, images), labels).backward()
    nn.functional.cross_entropy(network(images), labels).backward()
    learned.gradients()
    (score,) = learned.scores.values()
    torch.testing.assert_close(score.grad, gates.grad * score.sign())
    assert (score.grad[kept == 0] != 0).any(), "a pruned channel can come back"


@pytest.mark.parametrize("name", ["vpns", "hydra"])
def test_a_search_leaves_the_network_under_the_masks_of_whole_channels(name):
    model = tiny_model()
    views = BOTH if name == "vpns" else ("clean",)
    search = make_search(model, density=0.5, views=views, rule=rule_for(model.network))
    masks = METHODS[name].find_masks(search)
    for name, weight in prunable(model.network).items():
        assert torch.equal(weight != 0, masks[name])
    assert rule_for(compacted(model.network, SIZE)).count == 8


def test_no_channel_to_prune_is_an_error() -> None:
    with pytest.raises(UsageError, match="no channel of this network can be pruned"):
        rule_for(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES)))


# Every method


RUNS = [(name, kind) for name in METHODS for kind in ("channel", "nm:2:4")]
HERE = [("vpns", "channel"), ("omp", "channel"), ("vpns", "nm:2:4"), ("gmp", "nm:2:4")]


@pytest.mark.parametrize(("name", "granularity"), [
    pytest.param(name, kind, marks=pytest.mark.slow)
    if kind.partition(":")[0] in METHODS[name].granularities and (name, kind) not in HERE
    else (name, kind) for name, kind in RUNS])  # fmt: skip
def test_every_method_prunes_so_or_says_which_can(tmp_path, name, granularity):
    words = ["--prune_method", name, "--granularity", granularity]
    words += ["--density_list", "0.5"] if granularity == "channel" else []  # a pattern has its own
    done = run(tmp_path, *words)
    kind = granularity.partition(":")[0]
    if kind not in METHODS[name].granularities:
        assert done.code == 2
        assert f"{name} cannot prune with --granularity {granularity}" in done.error
        return
    row = done.result["rows"][0]
    found = call("--evaluate", done.folder / "d0.5/model.safetensors", *CPU).result
    assert (found["clean"], found["kept"]) == (row["clean"], row["kept"])
    again = run(tmp_path, *words)
    assert again.result["rows"] == [row] and again.result["read"] == [row["density"]]


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if "nm" in m.granularities])
def test_every_group_of_a_pattern_is_exact(name):
    search = make_search(density=0.5, rule=partial(keep_pattern, m=4))
    masks = METHODS[name].find_masks(search)
    expected = {"0.weight": 8 * 9 * 2, "3.weight": 8 * 9 * 4, "7.weight": 6 * 4}
    assert {n: int(m.sum()) for n, m in masks.items()} == expected
    assert (masks["3.weight"].view(8, 2, 4, 9).sum(2) == 2).all()
    assert (masks["0.weight"].sum(1) == 2).all()


@pytest.mark.parametrize("words, reason", [
    (["nm:2:4", "--density_list", "0.1"], "has the density 0.5: leave --density_list"),
    (["nm:2:4", "--min_layer_density", "0.1"], "keeps the same share of every layer"),
    (["channel", "--init_mask", "x.pth"], "the masks of a file are what they are"),
    (["half"], "is none of weight, channel and nm:N:M"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path, words, reason):
    done = call("--dataset", "digits", "--network", "resnet20", "--save_dir", tmp_path,
                "--granularity", *words)  # fmt: skip
    assert done.code == 2 and reason in done.error
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_channels() -> None:
    words = ("--network", "resnet20", "--dataset", "digits", "--dry_run", "--density_list", "0.5")
    plan = json.loads(call(*words, "--granularity", "channel").out)
    assert (plan["prunable"], plan["levels"][0]["kept"]) == (352, 176)


def test_states_of_a_search_for_channels_are_measured(tmp_path) -> None:
    done = run(tmp_path, "--granularity", "channel", "--density_list", "0.5", "--keep_states")
    found = call("--evaluate", done.folder / "d0.5/search-1.pt", *CPU).result
    row = done.result["rows"][0]
    assert (found["clean"], found["kept"]) == (row["after_search"], row["kept"])
