"""The paper's published numbers (paper_results.csv) and the flags that make each of them.

Accuracies in percent by sparsity in percent; the main table's are means of three seeds.
"""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pruning import METHODS
from report.runs import BOTH, deviations

FILE = Path(__file__).with_name("paper_results.csv")
Curve = dict[float, tuple[float, float | None]]  # sparsity: accuracy, standard deviation


class Source(NamedTuple):
    """One curve of the paper: its place there, the method and flags behind it, its accuracy."""

    experiment: str
    key: str
    method: str
    flags: dict[str, Any]  # beside the method's defaults
    accuracy: str = "clean"  # or prompted: the column of ours that the numbers belong to


LATER = ("gmp", "acdc", "rigl")  # methods that the paper's tables do not have
PAD, INPUT, KIND = "ablation_pad_size", "ablation_input_size", "ablation_prompt_method"
# Of those that fit a run, the one with the most flags has its numbers.
SOURCES = (
    *(Source("main", name, name, {}) for name in METHODS if name not in LATER),
    *(Source("architectures", name, name, {}) for name in ("dense", "vpns", "hydra", "omp")),
    Source("prompt_phase", "vpns", "vpns", {}),
    *(Source("prompt_phase", f"prompt_in_{stage}_only", "vpns", {"prune_mode": mode})
      for stage, mode in (("mask_search", "score+vp_weight"), ("finetuning", "weight+vp_score"))),
    Source(PAD, "prompt16", "vpns", {}),
    *(Source(PAD, f"prompt{size}", "vpns", {"pad_size": size}) for size in (32, 48, 64)),
    Source(INPUT, "input224", "vpns", {}),
    *(Source(INPUT, f"input{size}", "vpns", {"input_size": size}) for size in (128, 160, 192)),
    Source(KIND, "pad", "vpns", {}),
    *(Source(KIND, kind, "vpns", {"prompt_method": kind}) for kind in ("fix", "random")),
    *(Source("vpns_with_other_masks", f"vpns_with_{name}", name, {"prune_mode": BOTH}, "prompted")
      for name in ("lth", "omp", "random")),
    *(Source(f"post_pruning_prompt_{mode}", key, name, {"post_prompt": mode}, accuracy)
      for mode in ("finetuned", "zeroshot")
      for name in ("hydra", "omp", "snip", "synflow", "random")
      for key, accuracy in ((name, "clean"), (f"{name}_prompt", "prompted"))),
)


def published(config: Mapping[str, Any], accuracy: str) -> Curve:
    """The paper's `accuracy` for a run's network, dataset and method; {} where it has none."""
    where = config["network"], config["dataset"]
    for source in sorted(SOURCES, key=lambda source: -len(source.flags)):
        curve = numbers().get((*where, source.experiment, source.key))
        alike = (source.method, source.accuracy) == (config["prune_method"], accuracy)
        if curve and alike and deviations(config).items() <= source.flags.items() <= config.items():
            return curve
    return {}


@cache
def numbers() -> Mapping[tuple[str, str, str, str], Curve]:
    """All published numbers by network, dataset, experiment and method key."""
    curves: dict[tuple[str, str, str, str], Curve] = {}
    with open(FILE, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = (row["network"], row["dataset"], row["experiment"], row["method"])
            std = float(row["std"]) if row["std"] else None
            curves.setdefault(key, {})[float(row["sparsity"])] = (float(row["accuracy"]), std)
    return curves
