"""Run folders written by hand, for the tests of the report."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path

import report
from utils.signals import SIGNALS

HEADER = "density,real_density,kept,prunable,before,after_search,clean,prompted,passes\n"
BOTH, NEITHER = "score+vp_weight+vp", "score_weight"
ENV = {"python": "3.12.0", "torch": "2.14.1", "cores": 2, "accelerator": None}


def call(*words: object) -> int:
    """The command in this process; signal handlers are put back. Returns the exit code."""
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    try:
        return report.main([str(word) for word in words])
    finally:
        for name, handler in handlers.items():
            signal.signal(getattr(signal, name), handler)


def row(density: float, clean: float, prompted: float | str = "") -> str:
    return f"{density},{density},1,10,0,0,{clean},{prompted},60\n"


def make_run(
    root: Path, method: str, seed: int, cells: Mapping[float, float], **flags: object
) -> Path:
    """A run of ResNet-20 on digits, clean accuracy by density; `flags` change its config.json."""
    config = {
        "network": "resnet20", "dataset": "digits", "prune_method": method, "seed": seed,
        "prune_mode": BOTH if method == "vpns" else NEITHER, "prompt_method": "pad",
        "pad_size": 2, "post_prompt": "none", "init_mask": None, "init_from": None,
        "label_mapping_mode": "flm", "epochs": 8, "weight_lr": 0.01, "score_vp_lr": 0.001,
        "density_list": [1.0, 0.1, 0.05], "save_dir": str(root), "preset": "none",
    } | flags  # fmt: skip
    name = "-".join(str(config[key]) for key in ("network", "dataset", "prune_method"))
    number = len(list((root / name).glob("*")))
    run = root / name / f"seed{seed}-{number:08x}"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(config))
    (run / "env.json").write_text(json.dumps(ENV))
    (run / "run.json").write_text(json.dumps({"state": "done", "reason": "", "seconds": 12.5}))
    (run / "results.csv").write_text(HEADER + "".join(row(*cell) for cell in cells.items()))
    return run


def set_state(run: Path, state: str, reason: str = "") -> None:
    text = json.dumps({"state": state, "reason": reason, "seconds": 1.0})
    (run / "run.json").write_text(text)


def prompt(run: Path, density: float, clean: float, prompted: float) -> None:
    """Let the run have one level, measured with the prompt, too."""
    (run / "results.csv").write_text(HEADER + row(density, clean, prompted))
