"""Label mapping: counting predictions, the greedy choice, and its ties."""

import pytest
import torch
from conftest import CLASSES, SOURCES, TinyView, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.label_map import count_predictions, frequency_mapping, random_mapping, unread


class Known(nn.Module):
    """A model whose images are the source classes that it predicts, (B,)."""

    def __init__(self, sources: int) -> None:
        super().__init__()
        self.sources = sources

    def source_logits(self, x: Tensor, prompted: bool) -> Tensor:
        return nn.functional.one_hot(x, self.sources).float()


@st.composite
def count_matrices(draw: st.DrawFn) -> Tensor:
    classes = draw(st.integers(1, 5))
    sources = draw(st.integers(classes, 8))
    cells = st.lists(st.integers(0, 4), min_size=sources * classes, max_size=sources * classes)
    return torch.tensor(draw(cells)).view(sources, classes)


def slowly(counts: Tensor) -> list[int]:
    """All pairs from the largest count down, each taken if both of its ends are still free."""
    sources, classes = counts.shape
    pairs = [(-int(counts[s, c]), s, c) for s in range(sources) for c in range(classes)]
    taken: dict[int, int] = {}
    for _, source, target in sorted(pairs):
        if target not in taken and source not in taken.values():
            taken[target] = source
    return [taken[target] for target in range(classes)]


def count(predicted: list[int], labels: list[int], sources: int, classes: int) -> Tensor:
    batches = [(torch.tensor(predicted), torch.tensor(labels))]
    return count_predictions(Known(sources), batches, classes, prompted=False)


@given(count_matrices())
def test_the_choice_agrees_with_going_through_all_pairs(counts: Tensor) -> None:
    assert frequency_mapping(counts).tolist() == slowly(counts)


@given(count_matrices())
def test_source_classes_are_distinct(counts: Tensor) -> None:
    mapping = frequency_mapping(counts).tolist()
    assert len(set(mapping)) == counts.shape[1] and set(mapping) <= set(range(len(counts)))


@given(count_matrices())
def test_every_target_class_has_a_source(counts: Tensor) -> None:
    sources, classes = counts.shape
    mapping = frequency_mapping(counts)
    assert mapping.shape == (classes,) and mapping.dtype == torch.int64
    assert mapping.min() >= 0 and mapping.max() < sources


@given(count_matrices())
def test_the_counts_are_left_alone(counts: Tensor) -> None:
    before = counts.clone()
    frequency_mapping(counts)
    assert torch.equal(counts, before)


def test_a_mapping_by_hand() -> None:
    """9 joins 2 and 0; then 7 is gone with column 0, and 5 joins 0 and 1."""
    assert frequency_mapping(torch.tensor([[7, 5], [0, 1], [9, 8]])).tolist() == [2, 0]


def test_ties_go_to_the_smallest_source_then_the_smallest_target() -> None:
    assert frequency_mapping(torch.tensor([[0, 3, 3], [3, 3, 0], [1, 1, 1]])).tolist() == [1, 0, 2]


def test_absent_classes_take_the_lowest_free_sources_in_order() -> None:
    counts = torch.zeros(5, 4, dtype=torch.int64)
    counts[0, 2] = 6
    assert frequency_mapping(counts).tolist() == [1, 2, 0, 3]


def test_as_many_targets_as_sources_use_every_source() -> None:
    assert frequency_mapping(torch.tensor([[1, 5], [1, 4]])).tolist() == [1, 0]


def test_counts_are_by_source_and_target() -> None:
    counts = count([2, 2, 0, 2], [0, 0, 1, 1], sources=3, classes=2)
    assert counts.tolist() == [[0, 1], [0, 0], [2, 1]]


def test_an_absent_class_keeps_its_column() -> None:
    counts = count([0, 1], [0, 3], sources=2, classes=5)
    assert counts.shape == (2, 5) and counts[:, [1, 2, 4]].sum() == 0 and counts[1, 3] == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1), st.randoms())
def test_the_order_of_samples_changes_nothing(samples: list, random) -> None:
    shuffled = random.sample(samples, len(samples))
    first, second = (count(*map(list, zip(*s, strict=True)), 6, 4) for s in (samples, shuffled))
    assert torch.equal(first, second)
    assert torch.equal(frequency_mapping(first), frequency_mapping(second))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=2), st.integers(1, 7))
def test_batches_of_any_size_give_the_same_counts(samples: list, size: int) -> None:
    predicted, labels = (torch.tensor(part) for part in zip(*samples, strict=True))
    parts = zip(predicted.split(size), labels.split(size), strict=True)
    streamed = count_predictions(Known(6), parts, 4, prompted=False)
    assert torch.equal(streamed, count(predicted.tolist(), labels.tolist(), 6, 4))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_put_back(training: bool) -> None:
    model = tiny_model().train(training)
    count_predictions(model, TinyView("clean").batches(1), CLASSES, prompted=True)
    assert model.training is training and model.network[1].training is training


def test_counting_moves_no_statistics_and_leaves_no_graph() -> None:
    model = tiny_model()
    counts = count_predictions(model, TinyView("clean").batches(1), CLASSES, prompted=True)
    assert model.network[1].num_batches_tracked == 0 and not counts.requires_grad


def test_counting_ignores_the_present_mapping() -> None:
    model, view = tiny_model(), TinyView("clean")
    counts = count_predictions(model, view.batches(1), CLASSES, prompted=False)
    assert counts.shape == (SOURCES, CLASSES) and counts.sum() == view.images


def test_counting_shows_the_prompt_when_asked() -> None:
    model, shown = tiny_model(), []
    model.prompt.register_forward_hook(lambda *_: shown.append(True))
    for prompted in (False, True):
        count_predictions(model, TinyView("clean").batches(1), CLASSES, prompted)
    assert len(shown) == len(TinyView("clean"))


def test_a_random_prompt_gives_the_same_counts_again() -> None:
    model = tiny_model(kind="random")
    with torch.no_grad():
        model.network[7].weight.mul_(100)
        model.prompt.program.normal_(0, 9, generator=torch.Generator().manual_seed(0))
    shown = []
    model.prompt.register_forward_hook(lambda _, __, out: shown.append(out.clone()))
    for _ in range(2):
        count_predictions(model, TinyView("clean").batches(1), CLASSES, prompted=True)
    assert torch.equal(torch.cat(shown[:3]), torch.cat(shown[3:]))


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 99))
def test_a_random_mapping_has_distinct_sources(classes: int, more: int, seed: int) -> None:
    """Without one more source than classes it is a permutation."""
    mapping = random_mapping(classes + more, classes, seed)
    assert mapping.unique().numel() == len(mapping) == classes
    assert mapping.min() >= 0 and mapping.max() < classes + more


def test_a_random_mapping_is_the_same_for_the_same_key() -> None:
    torch.manual_seed(1)
    first = random_mapping(1000, 10, 7, 0.5)
    torch.manual_seed(2)
    assert torch.equal(first, random_mapping(1000, 10, 7, 0.5))


def test_a_random_mapping_depends_on_the_key() -> None:
    assert not torch.equal(random_mapping(1000, 10, 7, 0.5), random_mapping(1000, 10, 9, 0.5))


def test_the_weights_that_no_class_reads_are_those_that_stay_in_other_rows_of_the_head() -> None:
    rows = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 1]]).bool()  # 1 and 3 are read
    masks = {"conv.weight": torch.tensor([True, True, False, True]), "fc.weight": rows}
    assert unread(masks, {"fc.weight", "fc.bias"}, torch.tensor([3, 1])) == 5
    assert unread(masks, {"fc.weight"}, None) == 0
