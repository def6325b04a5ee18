"""What a pruning method is: a function from a search to masks."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning.granularity import WEIGHT, Rule
from pruning.masks import Masks, Scores, apply_masks, keep_top
from pruning.measure import Counts
from pruning.stage import CLEAN, PROMPTED, Group, Log, Teach, nothing
from utils.optim import Optim

# Which of the two stages, search and fine-tuning, see the prompt (paper, ablation of the phases).
PRUNE_MODES: dict[str, tuple[bool, bool]] = {
    "score+vp_weight+vp": (True, True),
    "score+vp_weight": (True, False),
    "weight+vp_score": (False, True),
    "score_weight": (False, False),
}


def stage_views(prompted: bool, prompts_anywhere: bool) -> tuple[str, ...]:
    """The views of one iteration of a stage.

    A run that never prompts takes one clean step. A run that prompts in one stage only repeats the
    same clean batch in the other, so that both stages make the same number of updates.
    """
    if prompted:
        return (PROMPTED, CLEAN)
    return (CLEAN, CLEAN) if prompts_anywhere else (CLEAN,)


Tensors = dict[str, Tensor]


def make_anew(name: str, masks: Masks, make: Callable[[], Tensors], like: Tensors) -> Tensors:
    """Call `make`. The program gives a search a version that also keeps the result in a file.

    The result must depend on the settings of the run, `name` and the given tensors only; it has
    the names, shapes and types of `like`.
    """
    return make()


@dataclass(frozen=True)
class Trained:
    """A finished level: its density, masks and trained weights by parameter name."""

    density: float
    masks: Masks
    weights: Scores


@dataclass(frozen=True)
class Search:
    """All that a method may use to find masks at one density.

    The model comes with the label mapping of the dense network. `remap` makes it anew with the
    model as it is: a method calls it, by `use` or itself, once the network is masked.
    """

    model: Any  # PromptedClassifier: .network, .prompt, images to logits
    data: Any  # .clean, .prompted, .test: views that give batches
    density: float
    epochs: int
    views: tuple[str, ...]
    weight_optim: Optim
    score_optim: Optim
    prompt_optim: Optim
    log: Log
    remap: Callable[[], None] = nothing
    before_epoch: Callable[[], None] = nothing
    previous: Callable[[], "Trained | None"] = nothing  # the level before, fine-tuned
    once: Callable[[str, Masks, Callable[[], Tensors], Tensors], Tensors] = make_anew
    floor: float = 0.0  # no layer's density falls below it
    rule: Rule = keep_top  # what is pruned together
    teach: Teach | None = None  # what the training of a masked network learns from, too
    falls: bool = False  # learned scores keep all weights at first, and fewer by a cubic
    tested: Callable[[Counts | None], None] = nothing  # told the counts that training ended with

    def prompt_groups(self) -> tuple[Group, ...]:
        """The prompt's parameters as a group of their own, or nothing when it takes no part."""
        return prompt_groups(self.model.prompt, self.views, self.prompt_optim)

    def batches(self, purpose: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole batches for scoring, from the first view of the search, drawn for this purpose."""
        view = self.data.prompted if self.prompted else self.data.clean
        return iter(view.whole().batches(*self.log.key, purpose))

    def keep(self, scores: Scores, density: float | None = None) -> Masks:
        """The masks of the highest scores, at the density of the search or another one."""
        return self.rule(scores, density or self.density, self.floor)

    def use(self, masks: Masks) -> Masks:
        """Mask the network, map the labels with it, and return the masks."""
        apply_masks(self.model.network, masks)
        self.remap()
        return masks

    @property
    def prompted(self) -> bool:
        """Whether the search shows the prompt."""
        return PROMPTED in self.views


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Score without moving BatchNorm's statistics, and without autocast or compilation.

    One batch decides a mask, and without loss scaling float16 would lose small gradients. The
    fused kernels of attention have no second derivatives, which GraSP takes. The mode of the model
    is put back.
    """
    was_training = model.training
    model.eval()
    try:
        with model.plain(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        model.train(was_training)


def gradients_of(
    output: Tensor, weights: Iterable[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """d output / d weight for each weight; zeros for a weight that takes no part in the output."""
    return torch.autograd.grad(
        output, tuple(weights), create_graph=create_graph, materialize_grads=True
    )


def one_shot(score: Callable[[Search], Scores]) -> Callable[[Search], Masks]:
    """A method that scores the dense network once and keeps the highest scores."""

    def find_masks(search: Search) -> Masks:
        return search.use(search.keep(score(search)))

    return find_masks


def prompt_groups(
    prompt: nn.Module | None, views: tuple[str, ...], optim: Optim
) -> tuple[Group, ...]:
    """The group that moves the prompt in a stage with these views, or nothing."""
    if prompt is None or PROMPTED not in views:
        return ()
    return (Group(tuple(prompt.parameters()), optim),)


def one_phase(epochs: int, updates: int, before: float, density: float) -> int:
    """Passes over the training set of a search that is one training phase."""
    return epochs * updates


def no_phase(epochs: int, updates: int, before: float, density: float) -> int:
    """A search that trains nothing."""
    return 0


@dataclass(frozen=True)
class Method:
    """A way to find masks, with all its facts.

    `find_masks` returns a mask for every prunable weight; the model that it leaves behind is what
    fine-tuning starts from. `search_passes` tells what a search costs from the passes of one
    training phase, the density of the level before (1 at first) and its own.
    """

    find_masks: Callable[[Search], Masks]
    prune_mode: str = "score_weight"
    finetunes: bool = True
    only_density: float | None = None  # the one density that the method makes
    search_passes: Callable[[int, int, float, float], int] = one_phase
    chained: bool = False  # each level goes on from the one before: densities must fall
    learns: bool = False  # the search trains under a mask from its first step: norms move in it
    granularities: tuple[str, ...] = (WEIGHT,)  # what it can prune together
    trains: bool = False  # the search trains the weights, and fine-tuning goes on from there
    exact: bool = True  # its masks have the very count that the density asks for
    curve: tuple[str, str] | None = None  # colour and marker in the report's pictures
