"""The label of a method in a report: its name, and what distinguishes it visibly."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Flags = Mapping[str, Any]

# Flags that belong to the machine or the place: they change no result and no report shows them.
PLACE = frozenset(
    ("experiment_name", "save_dir", "data", "workers", "cache_gb", "download", "device", "gpu")
    + ("print_freq", "eval_every", "keep_states", "resume", "evaluate", "density", "dry_run")
    + ("save_every", "save_minutes", "debug", "preset", "check_data")
)
# Flags that distinguish no runs, or that `deviations` speaks of.
SPOKEN = frozenset(
    ("seed", "density_list", "prune_mode", "post_prompt", "init_mask", "init_from")
)
# The methods that prompt unless told otherwise (DESIGN 7.2), and what a prompt mode is called.
PROMPTED_BY_DEFAULT = ("vpns",)
BOTH, NEITHER = "score+vp_weight+vp", "score_weight"
MODE_WORDS = {
    BOTH: "prompt in both stages",
    "score+vp_weight": "prompt in search only",
    "weight+vp_score": "prompt in fine-tuning only",
    NEITHER: "no prompt",
}
USUAL = {"prompt_method": "pad", "post_prompt": "none", "label_mapping_mode": "flm",
         "init_mask": None, "init_from": None}  # fmt: skip
PROMPT_FLAG = re.compile(r"(weight|score)_vp_|(prompt_method|pad_size|mask_size)$")


def label(config: Flags, alike: Sequence[Flags]) -> str:
    """The method, its deviations, and the flags in which the runs `alike` differ.

    `alike` are the configs of all runs with the same network, dataset and method, this one too.
    """
    words = {name: config[name] for name in _varying(config, alike)} | deviations(config)
    return ", ".join([config["prune_method"], *(_word(n, words[n]) for n in sorted(words))])


def prompts(config: Flags) -> bool:
    """Whether a run shows the prompt at any time."""
    shown = _mode(config) != NEITHER or config.get("post_prompt", "none") != "none"
    return shown and config.get("prompt_method", "pad") != "none"


def _default_mode(config: Flags) -> str:
    return BOTH if config["prune_method"] in PROMPTED_BY_DEFAULT else NEITHER


def _mode(config: Flags) -> str:
    return config.get("prune_mode") or _default_mode(config)


def deviations(config: Flags) -> dict[str, Any]:
    """The flags that make a method another one than its name says, wherever it is shown."""
    flags = ["post_prompt", "init_mask", "init_from"]
    # Whether a run without any prompt was told `none` or `fix` matters only if it would prompt.
    if prompts(config) or _mode(config) != NEITHER:
        flags.append("prompt_method")
    found = {name: config[name] for name in flags if config.get(name, USUAL[name]) != USUAL[name]}
    if _mode(config) != _default_mode(config):
        found["prune_mode"] = _mode(config)
    if config.get("pad_size") == 0 and prompts(config) and "prompt_method" not in found:
        found["pad_size"] = 0
    return found


def _varying(config: Flags, alike: Sequence[Flags]) -> list[str]:
    """The flags to name because runs of the method differ in them and no value is the usual one."""
    shown = (name for name in config if name not in PLACE | SPOKEN)
    return [name for name in shown if _names(name, config, alike)]


def _names(flag: str, config: Flags, alike: Sequence[Flags]) -> bool:
    if flag in USUAL and config[flag] == USUAL[flag]:
        return False
    if PROMPT_FLAG.match(flag):
        # Without a prompt its settings mean nothing.
        alike = [other for other in alike if prompts(other)] if prompts(config) else []
    values = [other[flag] for other in alike if flag in other]
    # A frame of no pixels is named for itself; then any one other size is the usual one.
    values = [value for value in values if flag != "pad_size" or value != 0]
    return len(set(map(repr, values))) > 1


def _word(name: str, value: Any) -> str:
    """A flag and its value as the label says it."""
    words = {
        # Each seed may have a file of its own, which makes no other method of it.
        "init_mask": "given mask",
        "init_from": "given weights",
        "prune_mode": MODE_WORDS.get(str(value), value),
        "prompt_method": "no prompt" if value == "none" else f"{value} prompt",
        "post_prompt": f"{value} prompt afterwards",
        "pad_size": f"pad {value}",
        "label_mapping_mode": f"{value} labels",
    }
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return words.get(name, f"{name} {text}")
