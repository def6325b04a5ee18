"""Finished runs: what ran, how it went, under which label a report shows it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from program.settings import NOT_IDENTITY, Config
from pruning import METHODS, Method
from runfolder.level import PROFILE
from runfolder.results import ROWS, Row, find_runs, read_results, sparsity
from runfolder.stage_log import level_name
from utils.config import flatten, plain
from utils.errors import VPNsError, printable
from utils.files import is_amount, read_object

NAMES = ("network", "dataset", "prune_method", "seed")  # what the folder of a run is named for
LONGEST = 200  # characters of a text that a report takes from a file
FLAGS = 500  # of a config.json
Flags = Mapping[str, Any]
STRANGER = Method(find_masks=lambda search: {})
BOTH, NEITHER = "score+vp_weight+vp", "score_weight"
MODE_WORDS = {BOTH: "prompt in both stages", "score+vp_weight": "prompt in search only",
              "weight+vp_score": "prompt in fine-tuning only", NEITHER: "no prompt"}  # fmt: skip
USUAL = {name: plain(value) for name, value in flatten(Config()).items()}


@dataclass(frozen=True)
class Run:
    """One run: its flags, run.json, env.json, and the rows of results.csv by sparsity (%)."""

    folder: Path
    config: Flags
    record: Mapping[str, Any]
    env: Mapping[str, Any]
    rows: Mapping[float, Row]
    profiles: Mapping[float, Flags]  # of the levels that --profile has measured
    label: str = ""

    @property
    def where(self) -> tuple[str, str]:
        """Network and dataset."""
        return self.config["network"], self.config["dataset"]

    @property
    def method(self) -> str:
        return self.config["prune_method"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def name(self) -> str:
        """The folder without the machine's part of its path."""
        return printable(f"{self.folder.parent.name}/{self.folder.name}", LONGEST)

    @property
    def levels(self) -> set[float]:
        """Sparsities that the run has; of an unfinished run also those to come."""
        ends = self.record["state"] == "done" or facts(self.method).only_density is not None
        densities = () if ends else self.config.get("density_list") or ()
        return {sparsity(density) for density in densities} - {0} | set(self.rows)


def load_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs that `paths` mean, labelled, in a fixed order; and notes on those that are left out.

    Raises VPNsError for a path without runs and for a damaged run.
    """
    folders = {folder.resolve(): folder for path in paths for folder in find_runs(path)}
    runs = [_read(folder) for folder in folders.values()]
    with_rows = {(run.where, run.method, run.seed) for run in runs if run.rows}
    # A run without results beside one with results was a false start, no other method.
    runs = [run for run in runs if run.rows or (run.where, run.method, run.seed) not in with_rows]
    alike: dict[Any, list[Flags]] = {}
    for run in runs:
        alike.setdefault((run.where, run.method), []).append(run.config)
    runs = [replace(r, label=label(r.config, alike[r.where, r.method])) for r in runs]
    firsts: dict[Any, Run] = {}
    notes = []
    for run in sorted(runs, key=lambda r: (*r.where, r.label, r.seed, -len(r.rows), r.name)):
        first = firsts.setdefault((run.where, run.label, run.seed), run)
        if first is not run:
            notes.append(f"{run.name} repeats {first.name} and is left out")
    return list(firsts.values()), notes


def _read(folder: Path) -> Run:
    """Raises VPNsError when something in the folder is damaged, or nothing says what ran."""
    config = read_object(folder / "config.json")
    begun = (folder / "config.json").exists() and not (folder / "results.csv").exists()
    rows = [] if begun else read_results(folder)
    match = re.fullmatch(r"([^-]+)-([^-]+)-([^-]+)/seed(\d+)(-.*)?", "/".join(folder.parts[-2:]))
    if match:
        config = dict(zip(NAMES, (*match.groups()[:3], int(match[4])), strict=True)) | config
    elif not config.keys() >= set(NAMES):
        raise VPNsError(f"{folder} has no config.json that says what ran: name a run folder")
    wrong = [name for name, value in config.items() if not _is_flag(name, value)]
    if len(config) > FLAGS:
        raise VPNsError(f"{folder / 'config.json'} has more flags than a run: name another folder")
    if wrong:
        raise VPNsError(f"{folder / 'config.json'} has no such value of {', '.join(wrong[:3])}")
    config, env = _printable(config), _printable(read_object(folder / "env.json"))
    record = {"state": "done"} | _printable(read_object(folder / "run.json"))
    record["seconds"] = record.get("seconds") if is_amount(record.get("seconds")) else None
    by_sparsity = {sparsity(row["density"]): row for row in rows}
    profiles = {level: found for level, row in by_sparsity.items()
                if (found := _profile(folder / level_name(row["density"]) / PROFILE))}  # fmt: skip
    return Run(folder, config, record, env, by_sparsity, profiles)


def _profile(path: Path) -> dict[str, float]:
    """What a report shows of a profile.json; {} where there is none, or none of ours."""
    found = read_object(path)
    try:
        times = {count: min(found["ms"][count].values()) for count in ("1", "32")}
        values = {"bytes": found["bytes"]["packed"], "macs": found["macs"],
                  "effective": found["effective"], **times}  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}
    return values if all(map(is_amount, values.values())) else {}


def _printable(values: Flags) -> dict[str, Any]:
    """Plain values of a file, with every text as one line that is not long."""

    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(shown, value))
        return printable(value, LONGEST) if isinstance(value, str) else value

    return {shown(n): shown(value) for n, value in values.items() if _is_flag(n, value)}


def _is_flag(name: str, value: Any) -> bool:
    """Whether something read from a config.json can be the value of this flag."""
    if name in NAMES:
        return isinstance(value, int if name == "seed" else str)
    if name == "density_list":
        return isinstance(value, list) and len(value) <= ROWS and all(map(is_amount, value))
    values = value if isinstance(value, list) else [value]
    return all(isinstance(v, str | int | float | None) for v in values)


def facts(method: str) -> Method:
    """The method of this name; a plug-in that is not registered here has every default."""
    return METHODS.get(method, STRANGER)


def rank(method: str) -> tuple[int, str]:
    """Orders methods: the dense network, the others in the order of METHODS, strangers by name."""
    order = sorted(METHODS, key=lambda name: METHODS[name].only_density != 1)
    return (order.index(method), "") if method in METHODS else (len(order), method)


def label(config: Flags, alike: Sequence[Flags]) -> str:
    """The method, its deviations, and the flags in which `alike`, all runs of it here, differ."""
    names = [n for n in config.keys() - NOT_IDENTITY if _distinguishes(n, config, alike)]
    words = {name: config[name] for name in names} | deviations(config)
    return ", ".join([config["prune_method"], *(_word(n, words[n]) for n in sorted(words))])


def _mode(config: Flags) -> str:
    return config.get("prune_mode") or facts(config["prune_method"]).prune_mode


def prompts(config: Flags) -> bool:
    """Whether a run shows the prompt at any time."""
    asks = _mode(config) != NEITHER or config.get("post_prompt", "none") != "none"
    return asks and config.get("prompt_method") != "none"


def distils(config: Flags) -> bool:
    """Whether a run learns from another network."""
    return config.get("distill") is not None


MATTER = (  # flags, and whether they mean anything in a run
    (re.compile(r"(weight|score)_vp_|(prompt_method|pad_size|mask_size)$"), prompts),
    (re.compile("distill_"), distils),
)


def deviations(config: Flags) -> dict[str, Any]:
    """The flags that make another method of a run than its name says, in every report."""
    names = ["post_prompt", "init_mask", "init_from", "from_dense", "distill", "density_schedule"]
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
    if flag == "prune_mode" or flag in USUAL and config[flag] == USUAL[flag]:
        return False
    for flags, matter in MATTER:
        if flags.match(flag):
            alike = [other for other in alike if matter(other)] if matter(config) else []
    # A frame of no pixels is named for itself; then any one other size is the usual one.
    values = {repr(other[flag]) for other in alike if flag in other}
    return len(values - {"0"} if flag == "pad_size" else values) > 1


def _word(name: str, value: Any) -> str:
    """A flag and its value as the label says it."""
    text = as_text(value)
    words = {
        # Each seed may have a file of its own, which makes no other method of it.
        "init_mask": "given mask",
        "init_from": "given weights",
        "from_dense": "from the dense network",
        "distill": "distilled" if value == "" else "distilled from a file",
        "density_schedule": "falling density",
        "prune_mode": MODE_WORDS.get(text, text),
        "prompt_method": "no prompt" if value == "none" else f"{value} prompt",
        "post_prompt": f"{value} prompt afterwards",
        "pad_size": f"pad {value}",
        "label_mapping_mode": f"{value} labels",
    }
    return words.get(name, f"{name} {text}")


def as_text(value: Any) -> str:
    """A value as it stands on a command line."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
