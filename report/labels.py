"""The label of a method in a report: its name, and what distinguishes it visibly."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from program.settings import NOT_IDENTITY
from pruning import METHODS, Method

Flags = Mapping[str, Any]
STRANGER = Method(find_masks=lambda search: {})
# Flags that distinguish no runs, or that `deviations` speaks of.
SPOKEN = NOT_IDENTITY | {"prune_mode", "post_prompt", "init_mask", "init_from"}
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


def facts(method: str) -> Method:
    """The method of this name; a plug-in that is not registered here has every default."""
    return METHODS.get(method, STRANGER)


def rank(method: str) -> tuple[int, str]:
    """Orders methods: the dense network, the others in the order of METHODS, strangers by name."""
    order = sorted(METHODS, key=lambda name: METHODS[name].only_density != 1)
    return (order.index(method), "") if method in METHODS else (len(order), method)


def label(config: Flags, alike: Sequence[Flags]) -> str:
    """The method, its deviations, and the flags in which the runs `alike` differ.

    `alike` are the configs of all runs with the same network, dataset and method, this one too.
    """
    names = [n for n in config if n not in SPOKEN and _distinguishes(n, config, alike)]
    words = {name: config[name] for name in names} | deviations(config)
    return ", ".join([config["prune_method"], *(_word(n, words[n]) for n in sorted(words))])


def _mode(config: Flags) -> str:
    return config.get("prune_mode") or facts(config["prune_method"]).prune_mode


def prompts(config: Flags) -> bool:
    """Whether a run shows the prompt at any time."""
    asks = _mode(config) != NEITHER or config.get("post_prompt", "none") != "none"
    return asks and config.get("prompt_method", "pad") != "none"


def deviations(config: Flags) -> dict[str, Any]:
    """The flags that make a method another one than its name says, wherever it is shown."""
    names = ["post_prompt", "init_mask", "init_from"]
    # Whether a run without any prompt was told `none` or `fix` matters only if it would prompt.
    if prompts(config) or _mode(config) != NEITHER:
        names.append("prompt_method")
    others = {name: config[name] for name in names if config.get(name, USUAL[name]) != USUAL[name]}
    if _mode(config) != facts(config["prune_method"]).prune_mode:
        others["prune_mode"] = _mode(config)
    if config.get("pad_size") == 0 and prompts(config) and "prompt_method" not in others:
        others["pad_size"] = 0
    return others


def _distinguishes(flag: str, config: Flags, alike: Sequence[Flags]) -> bool:
    """Whether runs of the method differ in a flag whose value here is not the usual one."""
    if flag in USUAL and config[flag] == USUAL[flag]:
        return False
    if PROMPT_FLAG.match(flag):
        # Without a prompt its settings mean nothing.
        alike = [other for other in alike if prompts(other)] if prompts(config) else []
    # A frame of no pixels is named for itself; then any one other size is the usual one.
    values = {repr(other[flag]) for other in alike if flag in other}
    return len(values - {"0"} if flag == "pad_size" else values) > 1


def _word(name: str, value: Any) -> str:
    """A flag and its value as the label says it."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    words = {
        # Each seed may have a file of its own, which makes no other method of it.
        "init_mask": "given mask",
        "init_from": "given weights",
        "prune_mode": MODE_WORDS.get(text, text),
        "prompt_method": "no prompt" if value == "none" else f"{value} prompt",
        "post_prompt": f"{value} prompt afterwards",
        "pad_size": f"pad {value}",
        "label_mapping_mode": f"{value} labels",
    }
    return words.get(name, f"{name} {text}")
