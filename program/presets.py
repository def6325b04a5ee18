"""`--preset`: the settings of the paper's runs, from the launchers that made its tables; of ViTs.

One literal table; later rows win over earlier ones, typed flags win over all. A cell names one or
more networks, datasets or methods; `*` is anything.
Epochs are those of every phase: two updates an iteration for VPNs (30 + 30), one for HYDRA
(60 + 60), one phase for BiP, 120 for each phase of the mask baselines.
"""

from fnmatch import fnmatchcase
from functools import partial
from typing import Any

Values = dict[str, Any]


def _optim(groups: tuple[str, ...], optimizer: str, lr: float) -> Values:
    facts = {"optimizer": optimizer, "lr": lr}
    return {f"{group}_{name}": value for group in groups for name, value in facts.items()}


# The prompt is trained like the weights in fine-tuning, like the scores in the search.
_weights = partial(_optim, ("weight", "weight_vp"))
_scores = partial(_optim, ("score", "score_vp"))
BASELINES = "random omp lth snip grasp synflow dense"
_IMP_13 = (
    0.8, 0.64, 0.512, 0.41, 0.328, 0.262, 0.2097, 0.1678, 0.1342, 0.1074, 0.0859, 0.0687, 0.055,
)  # fmt: skip
_IMP_19 = (*_IMP_13, 0.044, 0.035, 0.0225, 0.018, 0.0144, 0.0115)

# network, dataset, method, values
TABLE: tuple[tuple[str, str, str, Values], ...] = (
    ("*", "*", "vpns", {"epochs": 30, "score_vp_scheduler": "multistep"}),
    ("*", "*", "vpns", _weights("sgd", 0.01) | _scores("adam", 1e-4)),
    ("*", "*", "hydra", {"epochs": 60} | _weights("sgd", 0.01) | _scores("sgd", 0.01)),
    ("*", "*", "bip", {"epochs": 60} | _weights("sgd", 0.01) | _scores("adam", 1e-4)),
    ("*", "*", BASELINES, {"epochs": 120} | _weights("sgd", 0.01)),
    ("*", "*", "lth", {"density_list": _IMP_13}),
    ("*", "cifar10 dtd flowers102 stanfordcars", "lth", {"density_list": _IMP_19}),
    ("*", "oxfordpets", "lth", {"density_list": _IMP_13[:10]}),
    ("*", "flowers102", "vpns", _weights("adam", 1e-3) | _scores("adam", 1e-3)),
    ("*", "flowers102", "bip", _scores("sgd", 0.01)),
    ("*", "oxfordpets", "vpns", _scores("sgd", 0.05)),
    ("*", "oxfordpets", "omp lth", _weights("sgd", 0.001)),
    ("*", "stanfordcars", "*", _weights("adam", 1e-3)),
    ("*", "stanfordcars", "vpns bip", _scores("adam", 1e-3)),
    ("*", "stanfordcars", "hydra", _scores("adam", 1e-4)),
    ("resnet50", "tiny_imagenet", "*", _weights("sgd", 1e-4)),
    ("resnet50", "tiny_imagenet", "hydra", _scores("sgd", 1e-4)),
    ("vgg16*", "*", "vpns", {"epochs": 20}),
    ("vgg16*", "cifar100", "vpns", _scores("sgd", 0.01)),
    ("vgg16*", "*", "hydra", {"epochs": 40}),
    ("vgg16*", "cifar100", "hydra", _scores("adam", 1e-4)),
    ("vgg16*", "cifar100", "omp", {"epochs": 60}),
    ("vgg16*", "tiny_imagenet", "omp", {"epochs": 80}),
    ("vgg16*", "tiny_imagenet", "*", {"batch_size": 128}),
    ("*", "imagenet", "*", {"label_mapping_mode": "none"} | _weights("sgd", 0.01)),
    ("*", "imagenet", "vpns", {"epochs": 10} | _scores("sgd", 0.01)),
    ("*", "imagenet", "hydra bip", {"epochs": 20}),
    ("*", "imagenet", "omp", {"epochs": 30}),
)
# Mask baselines with the prompt ("VPNs with OMP / LTH / Random masks"): 60 epochs a phase.
WITH_PROMPT = _optim(("weight_vp", "score_vp"), "adam", 1e-3) | {"epochs": 60, "weight_lr": 0.01}

# What people fine-tune vision transformers with: AdamW, a warm-up, a rate that falls by the step.
VIT = {
    "weight_optimizer": "adamw", "weight_lr": 1e-4, "weight_weight_decay": 0.05,
    "weight_vp_optimizer": "adam", "weight_vp_lr": 1e-3, "score_lr": 1e-3, "score_vp_lr": 1e-3,
    "warmup_epochs": 2, "schedule_by": "step", "clip_grad": 1.0, "label_smoothing": 0.1,
}  # fmt: skip


def paper_preset(network: str, dataset: str, method: str, prompted: bool) -> Values:
    """The paper's flags for a cell of its tables; `prompted` if any stage shows the prompt.

    A cell that the paper does not have gets what its method has elsewhere.
    """
    values: Values = {}
    for *patterns, settings in TABLE:
        cell = zip((network, dataset, method), patterns, strict=True)
        if all(any(fnmatchcase(name, p) for p in row.split()) for name, row in cell):
            values |= settings
    if prompted and method in BASELINES.split():
        values |= WITH_PROMPT | ({"epochs": 30} if dataset == "tiny_imagenet" else {})
    return values
