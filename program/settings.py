"""All flags as one config: completed from the registries, checked, and what follows from them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from data import SPECS, DataConfig
from models import NetworkConfig
from models.backbones import backbone, weights_file
from models.hub import PREFIX, from_hub
from program.flags import ADAM, DENSITIES, SGD, PruneConfig, RunConfig
from program.presets import VIT, paper_preset
from program.recall import settings_in
from prompts import PromptConfig, Sizes, VisualPrompt, build_prompt, has_prompt
from pruning import METHODS, PRUNE_MODES
from pruning.granularity import WEIGHT, pattern_of
from pruning.method import stage_views
from utils.config import flags_of, flatten, nested, parse_flags, replace_flags
from utils.errors import UsageError
from utils.optim import Optim, OptimConfig, ScheduleConfig
from utils.precision import Precision
from utils.recipe import Recipe

Typed = Mapping[str, str]  # by flag: "typed", or "config" where a file gave it
DESCRIPTION = """Find a sparse network by learning a visual prompt and a mask together.

Sparsity is the share of prunable weights (convolutions and linear layers) that are zero;
density is the share that is kept, 1 - sparsity: --density_list 0.1 asks for 90 % sparsity."""

FROM_HUB = ("weights", "init_mask", "init_from", "distill")  # files, perhaps of Hugging Face's hub
MEASURED_IMAGES, MEASURED_PIXELS = 256, 2**20  # without gradients there is room for so many


class Phases(NamedTuple):
    """One value for each of the two stages of a level."""

    search: Any
    finetune: Any


@dataclass(frozen=True)
class Config:
    """All flags. Only the entry script sees the whole."""

    run: RunConfig = nested("", RunConfig(), "run", identity=False)
    network: NetworkConfig = nested("", NetworkConfig(), "network")
    data: DataConfig = nested("", DataConfig(), "data")
    prompt: PromptConfig = nested("", PromptConfig(), "prompt")
    method: PruneConfig = nested("", PruneConfig(), "method")
    weight: OptimConfig = nested("weight_", SGD, "weights, in fine-tuning")
    weight_vp: OptimConfig = nested("weight_vp_", SGD, "prompt, in fine-tuning")
    score: OptimConfig = nested("score_", ADAM, "scores, in the search")
    score_vp: OptimConfig = nested("score_vp_", ADAM, "prompt, in the search")
    schedule: ScheduleConfig = nested("", ScheduleConfig(), "optimizers")
    recipe: Recipe = nested("", Recipe(), "optimizers")
    precision: Precision = nested("", Precision(), "accelerator (these change the last digits)")

    def optim(self, name: str) -> Optim:
        """The optimizer settings of weight, weight_vp, score or score_vp."""
        return Optim(getattr(self, name), self.schedule)

    @property
    def sizes(self) -> Sizes:
        """Image, canvas and prompt sizes of a completed config, in pixels."""
        prompt = self.prompt
        return Sizes(self.data.input_size, prompt.output_size, prompt.pad_size, prompt.mask_size)

    @property
    def pixels(self) -> int:
        """Pixels of an image or of its canvas, the larger: what the network may be shown."""
        return max(self.sizes.input, self.sizes.output) ** 2

    @property
    def measured_batch(self) -> int:
        """Images at a time where nothing is trained: 2^20 pixels, or a training batch."""
        return max(self.data.batch_size, min(MEASURED_PIXELS // self.pixels, MEASURED_IMAGES))

    @property
    def prompted(self) -> Phases:
        """Whether the search and fine-tuning see the prompt."""
        if not has_prompt(self.prompt.prompt_method):
            return Phases(False, False)
        return Phases(*PRUNE_MODES[self.method.prune_mode])

    @property
    def views(self) -> Phases:
        """The views of one iteration of the search and of fine-tuning, tuples of names."""
        return Phases(*(stage_views(here, any(self.prompted)) for here in self.prompted))

    @property
    def maps_with_prompt(self) -> bool:
        """Whether labels are mapped behind the prompt: when the network is used that way."""
        return any(self.prompted) or self.method.post_prompt == "zeroshot"

    @property
    def maps_each_epoch(self) -> bool:
        """Whether the mapping of search and fine-tuning is renewed before every epoch."""
        return self.method.label_mapping_mode == "ilm"

    @property
    def ends_prompted(self) -> bool:
        """Whether the finished network has a prompt of its own to be measured with."""
        return any(self.prompted) or self.method.post_prompt != "none"

    @property
    def finetunes(self) -> bool:
        """Whether the weights are trained after the search."""
        finetunes = METHODS[self.method.prune_method].finetunes
        return finetunes and self.method.post_prompt != "zeroshot"

    @property
    def levels(self) -> tuple[float, ...]:
        """The densities to make."""
        only = METHODS[self.method.prune_method].only_density
        if only is not None:
            return (only,)
        if pattern := self.pattern:
            return (pattern[0] / pattern[1],)
        listed = self.method.density_list
        return listed[1:] if listed[0] == 1 and len(listed) > 1 else listed

    @property
    def pattern(self) -> tuple[int, int] | None:
        """N and M of --granularity nm:N:M, else None."""
        return pattern_of(self.method.granularity)

    def build_prompt(self) -> VisualPrompt | None:
        """A fresh prompt. Raises UsageError for sizes that do not fit one another."""
        try:
            return build_prompt(self.prompt.prompt_method, self.sizes)
        except ValueError as error:
            raise UsageError(str(error)) from error


# What a run folder's hash leaves out: no number depends on it, or a folder is named for it.
NOT_IDENTITY = frozenset(n for n, facts in flags_of(Config()).items() if not facts["identity"])


def model_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags for a model file, the same anywhere: those that change numbers, and the seed."""
    return {n: value for n, value in flags.items() if n == "seed" or n not in NOT_IDENTITY}


def read_config(argv: Sequence[str]) -> tuple[Config, Typed]:
    """The completed config, and where each flag was given. Raises UsageError for bad flags."""
    parsed, names = parse_flags(Config(), argv, prog="main_vpns.py", description=DESCRIPTION)
    typed = dict.fromkeys(names, "typed")
    if parsed.run.config:
        values = settings_in(Path(parsed.run.config), Config(), typed)
        parsed = replace_flags(parsed, {n: v for n, v in values.items() if n not in typed})
        typed = dict.fromkeys(values, "config") | typed
    if parsed.method.sparsity is not None:
        if "density_list" in names:
            raise UsageError("--sparsity and --density_list say the same: give one of them")
        typed["density_list"] = typed["sparsity"]
        parsed = replace_flags(parsed, {"density_list": parsed.method.sparsity, "sparsity": None})
    fetched = {name: str(from_hub(value)) for name, value in flatten(parsed).items()
               if name in FROM_HUB and str(value).startswith(PREFIX)}  # fmt: skip
    parsed = replace_flags(parsed, fetched)
    config = complete(replace_flags(parsed, preset_values(parsed, typed)))
    check(config)
    return config, typed


def named(config: Config, typed: Typed) -> str | None:
    """The network that the user has typed."""
    return config.network.network if "network" in typed else None


def chosen_flags(config: Config, typed: Typed) -> dict[str, Any]:
    """The flags that the user has given, with their values."""
    return {name: value for name, value in flatten(config).items() if name in typed}


def preset_values(config: Config, typed: Typed) -> dict[str, Any]:
    """What the chosen preset sets; typed flags stay."""
    if config.method.preset == "none":
        return {}
    names = (config.network.network, config.data.dataset, config.method.prune_method)
    values = VIT
    if config.method.preset == "paper":
        values = paper_preset(*names, any(complete(config).prompted))
    return {name: value for name, value in values.items() if name not in typed}


def check(config: Config) -> None:
    """Raises UsageError when the settings do not fit one another."""
    method, levels = config.method, config.levels
    falling = all(before > after for before, after in pairwise(levels))
    if METHODS[method.prune_method].chained and not falling:
        raise UsageError(f"{method.prune_method} goes from each density to the next: "
                         "list them from the highest to the lowest")
    if method.min_layer_density > min(levels):
        raise UsageError(f"--min_layer_density {method.min_layer_density:g} is above density "
                         f"{min(levels):g}: no mask can keep so much of every layer")
    check_granularity(config)
    able = [name for name, row in METHODS.items() if row.learns and not row.trains]
    if method.density_schedule != "constant" and method.prune_method not in able:
        raise UsageError(f"--density_schedule {method.density_schedule} is of searches that learn "
                         f"scores: {', '.join(able)}")
    if method.post_prompt != "none" and not has_prompt(config.prompt.prompt_method):
        raise UsageError("--post_prompt needs a prompt: choose a --prompt_method other than none")
    if method.from_dense and method.init_from is not None:
        raise UsageError("--from_dense and --init_from both say where the weights come from: give "
                         "one of them")
    if method.init_from == "" and method.init_mask is None:
        raise UsageError("--init_from needs a file: --init_from PATH")
    config.build_prompt()
    name, classes = config.network.network, SPECS[config.data.dataset].classes
    named = weights_file(name, config.network.weights) is None
    if classes and named and config.run.evaluate is None:
        check_classes(backbone(name).source_classes, classes, method.label_mapping_mode)


def check_granularity(config: Config) -> None:
    """Raises UsageError when the method, or another flag, does not go with --granularity."""
    method, name = config.method, config.method.granularity
    kind, allowed = name.partition(":")[0], METHODS[method.prune_method].granularities
    if kind not in allowed and kind != WEIGHT:
        able = ", ".join(other for other, row in METHODS.items() if kind in row.granularities)
        raise UsageError(f"--prune_method {method.prune_method} cannot prune with --granularity "
                         f"{name}: {able} can")
    if kind != WEIGHT and (method.init_mask or method.init_from):
        raise UsageError(f"--granularity {name}: the masks of a file are what they are, "
                         "leave it out")
    if config.pattern and method.min_layer_density:
        raise UsageError(f"--granularity {name} keeps the same share of every layer: leave "
                         "--min_layer_density out")
    if config.pattern and method.density_list not in (DENSITIES, config.levels):
        raise UsageError(f"--granularity {name} has the density {config.levels[0]:g}: leave "
                         "--density_list and --sparsity out")


def check_classes(sources: int, classes: int, mapping: str) -> None:
    """Raises UsageError when a mapping would need more source classes than there are."""
    if mapping != "none" and classes > sources:
        raise UsageError(f"{classes} target classes cannot be mapped to {sources} source classes: "
                         "use --label_mapping_mode none for a head of its own")


def complete(config: Config) -> Config:
    """Fill what was left open from the rows of the network, the dataset and the method."""
    row = backbone(config.network.network)
    # A canvas holds its image; a frame has the same share of every canvas.
    output = config.prompt.output_size or max(row.output_size, config.data.input_size or 0)
    rows = {
        "weights": row.weights,
        "output_size": output,
        "input_size": min(row.input_size, output),
        "pad_size": min(max(1, round(output * row.pad_size / row.output_size)), output // 2),
        "mask_size": max(1, round(output * 115 / 224)),
        "batch_size": SPECS[config.data.dataset].batch_size,
        "prune_mode": METHODS[config.method.prune_method].prune_mode,
    }
    flags = flatten(config)
    values = {name: value for name, value in rows.items() if flags[name] is None}
    if SPECS[config.data.dataset].classes is None and config.data.data:
        values["data"] = os.path.abspath(config.data.data)  # the images are the dataset
    return replace_flags(config, values)
