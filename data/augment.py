"""More augmentation of the clean training images than the paper's crops and flips: torchvision's.

All draws come from keys, so that workers, caches and restarts change nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

KINDS = ("paper", "none", "trivial", "rand")
_KINDS = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}


@dataclass(frozen=True)
class Augment:
    """What is done to a batch (B, 3, S, S) in [0, 1] and its labels (B,) on their device.

    `mixup` and `cutmix` are the alphas of their Beta distributions, 0 for none; with both, each
    batch gets one of them. They make labels probabilities (B, `classes`).
    """

    kind: str = "paper"
    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int = 0

    def __bool__(self) -> bool:
        """Whether anything is done beside crops and flips."""
        return self.kind in _KINDS or self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: Tensor, labels: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """The batch with every image changed by its own of `seeds` (B,), and then mixed."""
        seeds = seeds.tolist()
        if self.kind in _KINDS:
            change = _KINDS[self.kind]()
            with _drawing_from(0):
                pairs = zip(images, seeds, strict=True)
                images = torch.stack([_changed(change, *pair) for pair in pairs])
        mixes = [mix(alpha=alpha, num_classes=self.classes)
                 for mix, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix)) if alpha]
        if mixes:
            with _drawing_from(seeds[0]):
                images, labels = mixes[int(torch.randint(len(mixes), ()))](images, labels)
        return images, labels


def _changed(change: v2.Transform, image: Tensor, seed: int) -> Tensor:
    torch.default_generator.manual_seed(seed)
    return change(image)


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Within, torchvision's draws, which are torch's global ones on the CPU, begin with `seed`."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
