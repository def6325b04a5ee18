"""Every flag of the program, completed from the registries and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from data import SPECS, DataConfig
from models import MAPPINGS, NetworkConfig
from models.backbones import backbone, weights_file
from program.presets import paper_preset
from prompts import PromptConfig, Sizes, VisualPrompt, build_prompt, has_prompt
from pruning import METHODS, PRUNE_MODES
from pruning.method import stage_views
from utils.config import flag, flags_of, flatten, nested, number, parse_flags, replace_flags, word
from utils.device import device_name
from utils.errors import UsageError
from utils.optim import Optim, OptimConfig, ScheduleConfig
from utils.precision import Precision

DESCRIPTION = """Find a sparse network by learning a visual prompt and a mask together.

Sparsity is the share of prunable weights (convolutions and linear layers) that are zero;
density is the share that is kept, 1 - sparsity: --density_list 0.1 asks for 90 % sparsity."""

IN_RANGE = "it must be in (0, 1]"


def parse_densities(text: str) -> tuple[float, ...]:
    """`1,0.6,0.5` to densities in (0, 1]; a repeated one is taken once."""
    parts = [part for part in text.strip("[]() ").split(",") if part.strip()]
    if not parts:
        raise ValueError("no density given: write for example 1,0.6,0.5")
    return tuple(dict.fromkeys(parse_density(part) for part in parts))


def parse_density(text: str) -> float:
    """A share of weights that are kept, in (0, 1]."""
    try:
        density = number(float, 0, 1)(text)
    except ValueError as error:
        raise ValueError(str(error).replace("it must be from 0 to 1", IN_RANGE)) from error
    if 1 - density == 1:  # 0, or so small that it vanishes beside 1
        raise ValueError(f"density {density:g} keeps no weight: {IN_RANGE}")
    return density


@dataclass(frozen=True)
class RunConfig:
    """Flags of the run as a whole, none of which makes another run."""

    save_dir: str = flag("result", "folder for all results")
    experiment_name: str = flag("vpns", "folder of the experiment in it")
    seed: int = flag(7, "seed of all random draws", parse=number(int, 0, 2**63 - 1))
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps", parse=device_name)
    gpu: int | None = flag(None, "number of the GPU, as in --device cuda:N", parse=number(int, 0))
    resume: str = flag(
        "auto", "auto continues the run with the same settings; none starts afresh and keeps the "
        "old folder under another name; or the path of a run folder or of its newest state, which "
        "must be good: only auto goes back to the state before a damaged one", parse=word)
    keep_states: bool = flag(
        False, "keep the newest states of the search (search-N.pt) and of fine-tuning")
    save_every: int = flag(
        0, "epochs between training states; 0 leaves it to --save_minutes; the end of a stage "
        "always has one", parse=number(int, 0))
    save_minutes: float = flag(
        10.0, "write a training state when so many minutes have passed since the last one, in the "
        "middle of an epoch too: what a kill, which cannot be answered, may cost; 0 for none",
        parse=number(float, 0))
    eval_every: int = flag(
        1, "epochs between measurements on the test images, for the curves only; 0 for none",
        parse=number(int, 0))
    print_freq: int = flag(
        200, "batches between lines when the output is no terminal", parse=number(int, 1))
    dry_run: bool = flag(False, "print the resolved plan as JSON and stop")
    check_data: bool = flag(
        False, "examine every image of the dataset, print what is found and stop", group="data")
    debug: bool = flag(False, "show the traceback of an error")
    evaluate: str | None = flag(
        None, "measure a checkpoint and stop: a model.safetensors or state of ours, a .pth of the "
        "authors, a URL, a Google Drive link, or a name of the model zoo (see README)",
        group="evaluation")
    density: float | None = flag(
        None, "density of an authors' checkpoint with scores (default: the model zoo's)",
        parse=parse_density, group="evaluation")


DENSITIES = (1.0, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class PruneConfig:
    """Flags of the method."""

    prune_method: str = flag("vpns", "pruning method", choices=METHODS)
    prune_mode: str | None = flag(
        None, "which stages see the prompt: search_finetuning, +vp where it does (default: the "
        "method's)", choices=tuple(PRUNE_MODES))
    density_list: tuple[float, ...] = flag(
        DENSITIES, "densities (1 - sparsity), each a level; a leading 1 is skipped",
        parse=parse_densities, identity=False)
    min_layer_density: float = flag(
        0.0, "the best weights of each layer that stay whatever their rank over all layers, as a "
        "share of the layer; at most the lowest density", parse=number(float, 0, 1))
    epochs: int = flag(
        30, "epochs of every training phase: search, fine-tuning, dense", parse=number(int, 0))
    label_mapping_mode: str = flag(
        "flm", "how source classes become target classes: by frequency, anew each epoch, at "
        "random; none gives the network a head of its own", choices=MAPPINGS)
    preset: str = flag(
        "none", "paper takes optimizers, rates, epochs, batch sizes (and LTH's densities) from "
        "the paper's runs for this network, dataset and method; typed flags win",
        choices=("none", "paper"), identity=False)
    init_mask: str | None = flag(
        None, "file to take the mask from instead of searching: a model file of ours, or tensors "
        "with weight_mask or popup_scores keys")
    init_from: str | None = flag(
        None, "file to take mask, weights, BatchNorm and prompt from; without a value, the file "
        "of --init_mask", bare="")
    post_prompt: str = flag(
        "none", "train a fresh prompt alone at the end: zeroshot instead of fine-tuning, "
        "finetuned after", choices=("none", "zeroshot", "finetuned"))


MEASURED_IMAGES, MEASURED_PIXELS = 256, 2**20  # without gradients there is room for so many

SGD, ADAM = OptimConfig(), OptimConfig(optimizer="adam", lr=1e-4)


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
    def measured_batch(self) -> int:
        """Images at a time where nothing is trained: 2^20 pixels of canvas, or a training batch."""
        most = MEASURED_PIXELS // self.prompt.output_size**2
        return max(self.data.batch_size, min(most, MEASURED_IMAGES))

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
        listed = self.method.density_list
        return listed[1:] if listed[0] == 1 and len(listed) > 1 else listed

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


def read_config(argv: Sequence[str]) -> tuple[Config, set[str]]:
    """The completed config and the names of the typed flags. Raises UsageError for bad flags."""
    parsed, typed = parse_flags(Config(), argv, prog="main_vpns.py", description=DESCRIPTION)
    config = complete(replace_flags(parsed, preset_values(parsed, typed)))
    check(config)
    return config, typed


def preset_values(config: Config, typed: set[str]) -> dict[str, Any]:
    """What the chosen preset sets; typed flags stay."""
    if config.method.preset == "none":
        return {}
    names = (config.network.network, config.data.dataset, config.method.prune_method)
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
    if method.post_prompt != "none" and not has_prompt(config.prompt.prompt_method):
        raise UsageError("--post_prompt needs a prompt: choose a --prompt_method other than none")
    if method.init_from == "" and method.init_mask is None:
        raise UsageError("--init_from needs a file: --init_from PATH")
    config.build_prompt()
    name, classes = config.network.network, SPECS[config.data.dataset].classes
    named = weights_file(name, config.network.weights) is None
    if classes and named:
        check_classes(backbone(name).source_classes, classes, method.label_mapping_mode)


def check_classes(sources: int, classes: int, mapping: str) -> None:
    """Raises UsageError when a mapping would need more source classes than there are."""
    if mapping != "none" and classes > sources:
        raise UsageError(f"{classes} target classes cannot be mapped to {sources} source classes: "
                         "use --label_mapping_mode none for a head of its own")


def complete(config: Config) -> Config:
    """Fill what was left open from the rows of the network, the dataset and the method."""
    row = backbone(config.network.network)
    output = config.prompt.output_size or row.output_size
    rows = {
        "weights": row.weights,
        "output_size": output,
        "input_size": min(row.input_size, output),
        "pad_size": row.pad_size,
        "mask_size": max(1, round(output * 115 / 224)),
        "batch_size": SPECS[config.data.dataset].batch_size,
        "prune_mode": METHODS[config.method.prune_method].prune_mode,
    }
    flags = flatten(config)
    return replace_flags(config, {n: v for n, v in rows.items() if flags[n] is None})
