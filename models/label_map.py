"""Label mapping: one source class of the pre-trained head for each target class.

A mapping is int64 (C,), entries distinct, in [0, S); mapped logits are logits[:, mapping].
"""

from collections.abc import Container, Iterable, Mapping

import torch
from torch import Tensor, nn

from utils.seed import generator, key_seed
from utils.together import total

MAPPINGS = ("flm", "ilm", "rlm", "none")


@torch.no_grad()
def count_predictions(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int, prompted: bool
) -> Tensor:
    """Count the samples of each target class that the network puts into each source class.

    `model` offers source_logits; the pass runs in eval mode and restores the mode before it. The
    draws of a `random` prompt depend on the batch alone.
    Returns int64 (S, C) on the CPU; a class without a sample keeps its column of zeros.
    """
    was_training = model.training
    model.eval()
    cells: list[Tensor] = []  # counted at the end: counting waits for an accelerator
    for step, (images, labels) in enumerate(batches):
        torch.manual_seed(key_seed("mapping", step))
        logits = model.source_logits(images, prompted)
        cells.append(logits.argmax(1) * classes + labels)
        sources = logits.shape[1]
    model.train(was_training)
    counts = torch.bincount(torch.cat(cells), minlength=sources * classes)
    return total(counts).view(sources, classes).cpu()


def frequency_mapping(counts: Tensor) -> Tensor:
    """Frequency label mapping: repeatedly join the pair with the largest count (paper, eq. of FLM).

    `counts` is (S, C) with C <= S. Ties go to the smallest source, then the smallest target, so
    classes without a count take the lowest free source classes. Returns int64 (C,).
    """
    open_counts = counts.clone()
    mapping = torch.empty(counts.shape[1], dtype=torch.int64)
    for _ in range(counts.shape[1]):
        source, target = divmod(int(open_counts.argmax()), counts.shape[1])
        mapping[target] = source
        open_counts[source, :] = -1
        open_counts[:, target] = -1
    return mapping


def random_mapping(sources: int, classes: int, *key: object) -> Tensor:
    """The first C entries of a random permutation of the S source classes, int64 (C,)."""
    return torch.randperm(sources, generator=generator("rlm", *key))[:classes]


def unread(masks: Mapping[str, Tensor], head: Container[str], mapping: Tensor | None) -> int:
    """How many of the weights that stay lie in rows of the head that no class reads.

    `masks` are bool by parameter name, `head` names those of the head, (S, ...).
    """
    if mapping is None:
        return 0
    rows = [mask for name, mask in masks.items() if name in head]
    return sum(int(mask.sum() - mask[mapping.to(mask.device)].sum()) for mask in rows)
