"""More augmentation of the clean training images than the paper's crops and flips: torchvision's.

All draws come from keys, so that workers, caches and restarts change nothing.
"""

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
        with torch.random.fork_rng(devices=()):  # torchvision draws from the global one of the CPU
            if self.kind in _KINDS:
                change, changed = _KINDS[self.kind](), []
                for image, seed in zip(images, seeds, strict=True):
                    torch.default_generator.manual_seed(seed)
                    changed.append(change(image))
                images = torch.stack(changed)
            mixes = [mix(alpha=alpha, num_classes=self.classes)
                     for mix, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix)) if alpha]
            if mixes:
                torch.default_generator.manual_seed(seeds[0])
                images, labels = mixes[int(torch.randint(len(mixes), ()))](images, labels)
        return images, labels
