"""More augmentation than crops and flips: keyed, of the clean training images alone."""

from pathlib import Path

import pytest
import torch
from cli import run
from torch import Tensor

from data import load_data
from data.augment import Augment
from data.load import DataConfig
from pruning.measure import hits

CPU = torch.device("cpu")
QUICK = ["--density_list", "0.1", "--eval_every", 0, "--input_size", 8, "--output_size", 8]


def batches(view: str = "clean", start: int = 0, **flags: object) -> list[tuple[Tensor, Tensor]]:
    """An epoch's batches of a view of the digits."""
    data = load_data(DataConfig(dataset="digits", train_images=90, **flags), 16, 40, CPU)
    return list(getattr(data, view).batches(7, 0, start=start))


def same(one: list, other: list) -> bool:
    ones, others = ([tensor for pair in part for tensor in pair] for part in (one, other))
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


ALL = {"augment": "trivial", "mixup": 0.2, "cutmix": 1.0}


@pytest.mark.parametrize("flags", [{"augment": "trivial"}, {"augment": "rand"}, ALL])
def test_the_same_key_gives_the_same_bits_from_any_batch_on(flags: dict) -> None:
    torch.manual_seed(5)
    before = torch.default_generator.get_state()
    whole = batches(**flags)
    assert torch.equal(torch.default_generator.get_state(), before)
    torch.manual_seed(6)
    assert same(whole, batches(**flags)) and same(whole[1:], batches(start=1, **flags))


@pytest.mark.parametrize("kind", ["trivial", "rand", "none"])
def test_images_change_and_labels_stay(kind: str) -> None:
    plain, changed = batches(), batches(augment=kind)
    for (x, y), (other, labels) in zip(plain, changed, strict=True):
        assert torch.equal(y, labels) and not torch.equal(x, other)
        assert x.shape == other.shape and float(other.min()) >= 0 and float(other.max()) <= 1


def test_none_shows_images_as_they_are() -> None:
    plain = torch.cat([x for x, _ in batches("prompted")]).flatten(1).sum(1).sort().values
    shown = torch.cat([x for x, _ in batches(augment="none")]).flatten(1).sum(1).sort().values
    assert torch.allclose(plain, shown)


@pytest.mark.parametrize("view", ["prompted", "test"])
def test_only_the_clean_training_view_is_changed(view: str) -> None:
    assert same(batches(view), batches(view, **ALL))


@pytest.mark.parametrize("flags", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_labels_of_mixed_images_are_the_shares_of_their_pictures(flags: dict) -> None:
    for (x, y), (mixed, shares) in zip(batches(), batches(**flags), strict=True):
        assert shares.shape == (len(y), 10)
        assert torch.allclose(shares.sum(1), torch.ones(len(y)), atol=1e-5)
        own = shares.gather(1, y[:, None])[:, 0]
        rolled = shares.gather(1, y.roll(1)[:, None])[:, 0]
        alone = y != y.roll(1)
        assert torch.allclose((own + rolled)[alone], torch.ones(int(alone.sum())), atol=1e-5)
        if "mixup" in flags:
            part = own[alone][0]
            assert torch.allclose(mixed, part * x + (1 - part) * x.roll(1, 0), atol=1e-5)


def test_hits_of_mixed_labels_are_those_of_the_larger_share() -> None:
    logits, shares = torch.eye(3), torch.tensor([[0.9, 0.1, 0], [0.6, 0.4, 0], [0, 0.3, 0.7]])
    assert int(hits(logits, shares)) == 2


def test_nothing_more_is_done_by_default() -> None:
    assert not Augment() and not Augment("none") and Augment("rand") and Augment(cutmix=1.0)


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "bip", "omp"])
def test_every_method_takes_mixed_images(tmp_path: Path, method: str) -> None:
    assert run(tmp_path, *QUICK, "--prune_method", method, "--mixup", 0.2).code == 0
