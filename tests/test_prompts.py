"""The prompt: what it may change, where its gradient goes, and where the image lies."""

from itertools import product

import pytest
import torch
from conftest import tiny_network
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.classifier import PromptedClassifier
from prompts import PROMPTS, Sizes, VisualPrompt, build_prompt
from prompts.kinds import (
    ExpandPrompt,
    FixPrompt,
    InclusiveClamp,
    PadPrompt,
    RandomPrompt,
    margins,
)

inclusive_clamp = InclusiveClamp.apply
KINDS = sorted(set(PROMPTS) - {"none"})


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    output = draw(st.integers(2, 12))
    frame, square = draw(st.integers(0, output // 2)), draw(st.integers(1, output))
    return Sizes(draw(st.integers(1, output - 1)), output, frame, square)


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(size))


def set_program(prompt: VisualPrompt, scale: float) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        prompt.program.copy_(scale * torch.randn(prompt.program.shape, generator=draw))


def slopes(clamp, values: list[float]) -> list[float]:
    x = torch.tensor(values, requires_grad=True)
    clamp(x).sum().backward()
    return x.grad.tolist()


def test_the_clamp_has_gradient_one_on_the_closed_interval() -> None:
    assert slopes(inclusive_clamp, [0.0, -0.0, 0.5, 1.0]) == [1, 1, 1, 1]


def test_the_clamp_has_no_gradient_outside() -> None:
    assert slopes(inclusive_clamp, [-1e-7, -3.0, 1.0000002, 9.0]) == [0, 0, 0, 0]


def test_the_clamp_passes_the_incoming_gradient() -> None:
    x = torch.tensor([0.0, 2.0, 0.3], requires_grad=True)
    (inclusive_clamp(x) * torch.tensor([5.0, 7.0, -2.0])).sum().backward()
    assert x.grad.tolist() == [5, 0, -2]


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20))
def test_the_clamp_gives_the_values_of_torchs(values: list[float]) -> None:
    x = torch.tensor(values)
    assert torch.equal(inclusive_clamp(x), x.clamp(0, 1))


@given(st.lists(st.floats(-3, 3, width=32).filter(lambda v: v not in (0, 1)), min_size=1))
def test_away_from_the_ends_the_clamp_has_the_gradient_of_torchs(values: list[float]) -> None:
    assert slopes(inclusive_clamp, values) == slopes(lambda x: x.clamp(0, 1), values)


@pytest.mark.parametrize(("black", "size"), [(0.0, 8), (1.0, 8), (0.5, 4)])
def test_a_frame_learns_over_black_and_white_and_off_the_image(black: float, size: int) -> None:
    prompt = PadPrompt(8, 2)
    prompt(torch.full((1, 3, size, size), black)).sum().backward()
    assert torch.equal(prompt.program.grad, prompt.region.expand(3, 8, 8))


@pytest.mark.parametrize(
    ("pad", "values"),
    [
        (0, 0), (8, 20_736), (16, 39_936), (32, 73_728), (48, 101_376), (64, 122_880),
        (80, 138_240), (96, 147_456), (112, 150_528),
    ],
)  # fmt: skip
def test_trainable_values_of_pad(pad: int, values: int) -> None:
    assert 3 * int(PadPrompt(224, pad).region.sum()) == values == 12 * pad * (224 - pad)


@pytest.mark.parametrize(
    ("mask", "values"),
    [
        (115, 39_675), (156, 73_008), (183, 100_467), (202, 122_412), (214, 137_388),
        (221, 146_523), (224, 150_528),
    ],
)  # fmt: skip
def test_trainable_values_of_fix(mask: int, values: int) -> None:
    assert 3 * int(FixPrompt(224, mask).region.sum()) == values


@pytest.mark.parametrize("size", [223, 192, 160, 128, 96, 64, 32, 1])
def test_trainable_values_of_expand(size: int) -> None:
    assert int(ExpandPrompt(224, size).region.sum()) == 224**2 - size**2


@pytest.mark.parametrize("mask", [1, 115, 224])
def test_values_of_random_in_a_step(mask: int) -> None:
    assert int(moved(RandomPrompt(224, mask)).sum()) == mask**2


def test_the_frame_lies_along_the_border() -> None:
    assert PadPrompt(4, 1).region.tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1] * 4]


def test_a_frame_of_half_an_odd_canvas_leaves_one_pixel() -> None:
    assert int(PadPrompt(5, 2).region.sum()) == 24


def test_fix_shows_in_the_top_left_corner() -> None:
    assert FixPrompt(3, 2).region.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_the_ring_of_expand_is_what_an_odd_difference_leaves_free() -> None:
    region = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]
    assert ExpandPrompt(5, 2).region.tolist() == region


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [(2, 4, (1, 1)), (2, 5, (2, 1)), (3, 4, (1, 0)), (4, 4, (0, 0)), (128, 224, (48, 48)),
     (1, 224, (112, 111))],
)  # fmt: skip
def test_an_odd_pixel_goes_left_and_top(inner: int, outer: int, expected: tuple) -> None:
    assert margins(inner, outer) == expected


def test_an_image_in_the_middle_by_hand() -> None:
    placed = PadPrompt(4, 0).place(torch.full((1, 1, 2, 2), 0.5))
    rows = [[0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 0]]
    assert placed[0, 0].tolist() == rows


def test_an_image_with_an_odd_difference_by_hand() -> None:
    placed = PadPrompt(4, 0).place(torch.arange(1.0, 10).view(1, 1, 3, 3))
    assert placed[0, 0].tolist() == [[0, 0, 0, 0], [0, 1, 2, 3], [0, 4, 5, 6], [0, 7, 8, 9]]


def test_the_sum_is_clamped_after_adding() -> None:
    prompt = PadPrompt(2, 1)
    with torch.no_grad():
        prompt.program.copy_(torch.tensor([[0.25, -0.75], [2.0, -2.0]]).expand(3, 2, 2))
    shown = prompt(torch.full((1, 3, 2, 2), 0.5))
    assert shown[0, 0].tolist() == [[0.75, 0.0], [1.0, 0.0]]


def test_the_canvas_is_padded_with_black_before_normalising() -> None:
    """Black is 0 before normalising: -mean / std behind it, not 0."""
    model = PromptedClassifier(torch.nn.Identity(), PadPrompt(4, 0), (0.5,) * 3, (0.25,) * 3)
    seen = model(torch.ones(1, 3, 2, 2), prompted=True)[0, 0]
    assert seen.tolist() == [[-2] * 4, [-2, 2, 2, -2], [-2, 2, 2, -2], [-2] * 4]


def test_a_clean_image_keeps_its_size() -> None:
    model = PromptedClassifier(torch.nn.Identity(), PadPrompt(4, 1))
    assert model(torch.ones(1, 3, 2, 2)).shape == (1, 3, 2, 2)


def test_a_classifier_without_a_prompt_shows_prompted_images_as_they_are() -> None:
    model, x = PromptedClassifier(tiny_network()).eval(), images(8)
    assert torch.equal(model(x, prompted=True), model(x))


def test_the_mapping_selects_columns() -> None:
    model = PromptedClassifier(tiny_network()).eval()
    model.label_map = torch.tensor([4, 1])
    assert torch.equal(model(images(8)), model.source_logits(images(8))[:, [4, 1]])


def test_a_new_frame_adds_nothing() -> None:
    assert torch.equal(PadPrompt(8, 2)(images(8)), images(8))


@pytest.mark.parametrize("kind", ["fix", "random", "expand"])
def test_sigmoid_prompts_start_as_grey(kind: str) -> None:
    prompt = build_prompt(kind, Sizes(4, 8, 2, 8))
    shown = prompt(torch.zeros(1, 3, 4, 4))[0]
    assert set(shown.unique().tolist()) <= {0.0, 0.5} and 0.5 in shown


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_is_the_only_parameter_and_starts_at_zero(kind: str) -> None:
    prompt = build_prompt(kind, Sizes(4, 8, 2, 3))
    ((name, program),) = prompt.named_parameters()
    assert (name, program.shape, bool(program.any())) == ("program", (3, 8, 8), False)


def moved(prompt: RandomPrompt) -> Tensor:
    """Where the next batch is shown it, (H, H) of 0 and 1."""
    prompt.move()
    return prompt.visible().clone()


def test_every_offset_of_the_random_square_is_drawn() -> None:
    torch.manual_seed(0)
    prompt = RandomPrompt(4, 2)
    corners = {tuple(moved(prompt).nonzero()[0].tolist()) for _ in range(300)}
    assert corners == set(product(range(3), range(3)))


def test_a_random_square_as_large_as_the_canvas_covers_it() -> None:
    assert moved(RandomPrompt(4, 4)).all()


def test_a_random_square_is_one_block() -> None:
    top, left = (shown := moved(RandomPrompt(9, 3))).nonzero()[0].tolist()
    assert shown[top : top + 3, left : left + 3].all() and shown.sum() == 9


def test_the_random_square_is_the_same_for_the_whole_batch() -> None:
    shown = RandomPrompt(8, 3)(torch.zeros(4, 3, 8, 8))
    assert all(torch.equal(image, shown[0]) for image in shown)


def test_the_random_square_repeats_with_the_seed() -> None:
    prompt, shown = RandomPrompt(32, 3), []
    for _ in range(2):
        torch.manual_seed(5)
        shown.append([moved(prompt) for _ in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(*shown, strict=True))


def test_random_learns_inside_its_square_only() -> None:
    prompt = RandomPrompt(8, 3)
    shown = prompt(torch.zeros(1, 3, 8, 8))
    shown.sum().backward()
    assert torch.equal(prompt.program.grad != 0, shown[0] > 0)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("pad", Sizes(9, 8, 2, 3), "input_size 9 is larger than output_size 8"),
        ("pad", Sizes(8, 8, 5, 3), "pad_size 5 is out of range: 0 to 4"),
        ("pad", Sizes(8, 8, -1, 3), "pad_size -1 is out of range: 0 to 4"),
        ("fix", Sizes(8, 8, 2, 9), "mask_size 9 is out of range: 1 to 8"),
        ("random", Sizes(8, 8, 2, 9), "mask_size 9 is out of range: 1 to 8"),
        ("fix", Sizes(8, 8, 2, 0), "mask_size 0 is out of range: 1 to 8"),
        ("expand", Sizes(8, 8, 2, 3), "input_size 8 leaves no ring .* from 1 to 7"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(kind: str, wrong: Sizes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_prompt(kind, wrong)


def test_kind_none_is_no_prompt() -> None:
    assert build_prompt("none", Sizes(8, 8, 2, 3)) is None


def test_no_prompt_needs_no_canvas() -> None:
    assert build_prompt("none", Sizes(9, 8, 2, 3)) is None


@given(st.sampled_from(KINDS), sizes(), st.floats(0, 100))
def test_any_prompted_image_lies_in_0_to_1(kind: str, fit: Sizes, scale: float) -> None:
    prompt = build_prompt(kind, fit)
    set_program(prompt, scale)
    shown = prompt(images(fit.input))
    assert shown.shape == (2, 3, fit.output, fit.output)
    assert float(shown.detach().min()) >= 0 and float(shown.detach().max()) <= 1


@given(st.sampled_from(["pad", "fix", "expand"]), sizes())
def test_outside_its_region_a_prompt_changes_nothing(kind: str, fit: Sizes) -> None:
    prompt = build_prompt(kind, fit)
    set_program(prompt, 1.0)
    x, outside = images(fit.input), prompt.region == 0
    assert torch.equal(prompt(x)[..., outside], prompt.place(x)[..., outside])


@given(st.sampled_from(["pad", "fix", "expand"]), sizes())
def test_a_program_learns_inside_its_region_only(kind: str, fit: Sizes) -> None:
    prompt = build_prompt(kind, fit)
    prompt(images(fit.input) / 4).sum().backward()  # dark, so that grey saturates nowhere
    assert torch.equal(prompt.program.grad != 0, (prompt.region == 1).expand(3, -1, -1))


@st.composite
def drawn_squares(draw: st.DrawFn) -> tuple[RandomPrompt, Tensor, int]:
    """A random prompt, images of any fitting size, and a seed that draws its square."""
    fit = draw(sizes())
    prompt = build_prompt("random", fit)
    set_program(prompt, 1.0)
    return prompt, images(fit.input), draw(st.integers(0, 99))


def square(prompt: RandomPrompt, seed: int) -> Tensor:
    """The square that the next batch will be shown after this seed, (H, H)."""
    torch.manual_seed(seed)
    shown = moved(prompt) == 1
    torch.manual_seed(seed)
    return shown


@given(drawn_squares())
def test_outside_the_drawn_square_nothing_changes(case: tuple) -> None:
    prompt, x, seed = case
    outside = ~square(prompt, seed)
    assert torch.equal(prompt(x)[..., outside], prompt.place(x)[..., outside])


@given(drawn_squares())
def test_a_program_learns_inside_the_drawn_square_only(case: tuple) -> None:
    prompt, x, seed = case
    inside = square(prompt, seed)
    prompt(x / 4).sum().backward()
    moved = prompt.program.grad != 0
    assert moved[:, inside].any() and not moved[:, ~inside].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_an_image(kind: str) -> None:
    prompt = build_prompt(kind, Sizes(4, 8, 2, 3))
    set_program(prompt, 5.0)
    picture = prompt.picture()
    assert picture.shape == (3, 8, 8) and picture.min() >= 0 and picture.max() <= 1
