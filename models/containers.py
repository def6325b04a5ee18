"""State dicts as people save them: inside containers, with prefixes, under names of their own."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What torch.compile, checkpointing, FSDP and DataParallel put inside a name.
WRAPPER = re.compile(
    r"(?<=\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|module)\."
)
DEEPEST = 4  # containers within each other that are looked through
BESIDE = ("mask", "masks")  # what people call the container of masks beside the weights
# torch.nn.utils.prune puts its suffixes behind the name of a weight; scores lie beside it.
ORIG, MASK, SCORE = "_orig", "_mask", ".popup_scores"


class Found(NamedTuple):
    """A state dict with the network's own names, its masks and scores by the names of the weights.

    `said` is what was done to get it, '' if nothing.
    """

    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    scores: dict[str, Tensor]
    said: str


def find_state(
    content: Mapping[Any, Any], expected: Mapping[str, Tensor], head: str, key: str | None = None
) -> Found:
    """The state dict in `content` that has most of the names of `expected`, under these names.

    Prefixes (`module.`, `model.`, `_orig_mod.`), another name of the last layer `head`, and weights
    that torch.nn.utils.prune keeps apart from their masks are resolved; what no tensor of the
    network is named like lies outside the prefix and is left out, and so are single numbers, as
    counters of operations are. `key` names the container where several hold one. Raises ValueError
    when none does.
    """
    found = {where: unwrapped(tensors, expected) for where, tensors in containers(content)}
    places = {
        (where, prefix): count
        for where, tensors in found.items()
        for prefix, count in prefixes(tensors, expected).items()
        if key in (None, where, prefix.rstrip("."), named(where, prefix))
        and not is_masks(where)
    }
    if not places:
        if key:
            raise ValueError(f"nothing called {key!r} has a name of the network's; without "
                             "--weights_key the best fit is taken")
        there = ", ".join(sorted(filter(None, found))[:5])
        raise ValueError(f"no tensor of it has a name of the network's{there and f' ({there})'}")
    chosen = max(places, key=lambda place: (places[place], -len(place[1])))
    others = [named(*p) for p in places if p != chosen and places[p] == places[chosen]]
    where, prefix = chosen
    tensors = {n.removeprefix(prefix): t for n, t in found[where].items() if n.startswith(prefix)}
    rest = {n: t for n, t in found[where].items() if not n.startswith(prefix)}
    tensors, renamed = with_head(tensors, rest, expected, head)
    masks, scores = masks_in(tensors) or masks_beside(found, prefix, tensors), scores_in(tensors)
    state = {name: tensor.masked_fill(masks[name] == 0, 0.0) if name in masks else tensor
             for name, tensor in plain(tensors).items()
             if name in expected or tensor.numel() > 1}  # fmt: skip
    parts = [where and f"its {where}", prefix and f"without {prefix!r}", renamed,
             masks and "each weight under its mask",
             others and f"not its {', '.join(others[:3])} (--weights_key chooses)"]  # fmt: skip
    return Found(state, masks, scores, ", ".join(filter(None, parts)))


def containers(content: Mapping[Any, Any], path: str = "", depth: int = 0) -> Iterator[tuple]:
    """Every dict with tensors in nested dicts and lists: its keys joined by dots, its tensors."""
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in content.items() if depth < DEEPEST else ():
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from containers(value, f"{path}.{key}".lstrip("."), depth + 1)


def named(where: str, prefix: str) -> str:
    """What `--weights_key` calls a container and a prefix in it."""
    return ".".join(filter(None, (where, prefix.rstrip("."))))


def is_masks(where: str) -> bool:
    """Whether a container is called like one of masks."""
    return where.rpartition(".")[2].lower() in BESIDE


def masks_beside(
    found: Mapping[str, Mapping[str, Tensor]], prefix: str, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The masks in a container of their own, named like the weights or their layers."""
    masks = {n.removeprefix(prefix).removesuffix(MASK): mask for where in found if is_masks(where)
             for n, mask in found[where].items()}  # fmt: skip
    named_like = {n if n in weights else f"{n}.weight": mask for n, mask in masks.items()}
    return {n: mask for n, mask in named_like.items()
            if n in weights and mask.shape == weights[n].shape}  # fmt: skip


def unwrapped(tensors: Mapping[str, Tensor], expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors without the names of wrappers around single layers."""
    return {name if name in expected else WRAPPER.sub("", name): tensor
            for name, tensor in tensors.items()}  # fmt: skip


def prefixes(names: Mapping[str, Any], expected: Mapping[str, Any]) -> Counter[str]:
    """What stands before names that the network has, and before how many of them."""
    counts: Counter[str] = Counter()
    for name in names:
        own = name.removesuffix(ORIG).removesuffix(MASK)
        own = f"{name.removesuffix(SCORE)}.weight" if name.endswith(SCORE) else own
        ends = [0, *(place + 1 for place, letter in enumerate(own) if letter == ".")]
        counts.update(own[:end] for end in ends if own[end:] in expected)
    return counts


def plain(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own parameters: scores and masks left out, weight_orig called weight."""
    return {name.removesuffix(ORIG): tensor.detach().contiguous() for name, tensor in raw.items()
            if not name.endswith((SCORE, MASK))}  # fmt: skip


def scores_in(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores by parameter name."""
    return {f"{k.removesuffix(SCORE)}.weight": v for k, v in raw.items() if k.endswith(SCORE)}


def masks_in(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks as the file stores them, by parameter name."""
    return {key.removesuffix(MASK): value for key, value in raw.items() if key.endswith(MASK)}


def with_head(
    tensors: dict[str, Tensor], rest: Mapping[str, Tensor], expected: Mapping[str, Tensor],
    head: str,
) -> tuple[dict[str, Tensor], str]:  # fmt: skip
    """The tensors with a last layer called `head`, and what it was called.

    Another layer is taken for it when it alone has weights of so many inputs and is none of the
    network's; it may lie outside the prefix.
    """
    weight = f"{head}.weight"
    own = plain(tensors)
    if weight in own or weight not in expected:
        return tensors, ""
    layers = [n.removesuffix(".weight") for n, t in {**own, **plain(rest)}.items()
              if n not in expected and n.endswith(".weight") and t.ndim > 1
              and t.shape[1:] == expected[weight].shape[1:]]  # fmt: skip
    if len(layers) != 1:
        return tensors, ""
    old = f"{layers[0]}."
    taken = {name: t for name, t in {**rest, **tensors}.items() if name.startswith(old)}
    others = {name: t for name, t in tensors.items() if name not in taken}
    renamed = {f"{head}.{name.removeprefix(old)}": t for name, t in taken.items()}
    return others | renamed, f"{layers[0]} as {head}"


def require_finite(state: Mapping[str, Tensor]) -> None:
    """Raises ValueError that names the first tensor with a value that is not finite."""
    broken = [n for n, t in state.items() if not torch.isfinite(t).all()]
    if broken:
        raise ValueError(f"{broken[0]} has values that are not finite")
