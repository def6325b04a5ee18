"""The flags of the run and of the method, each with all its facts."""

from dataclasses import dataclass
from decimal import Decimal

from models import MAPPINGS
from pruning import METHODS, PRUNE_MODES
from pruning.granularity import WEIGHT, granularity_named
from utils.config import flag, number, path_or_word
from utils.device import device_name
from utils.optim import OptimConfig

SGD, ADAM = OptimConfig(), OptimConfig(optimizer="adam", lr=1e-4)
IN_RANGE = "it must be in (0, 1]"


def parse_densities(text: str) -> tuple[float, ...]:
    """`1,0.6,0.5` to densities in (0, 1]; a repeated one is taken once."""
    parts = [part for part in text.strip("[]() ").split(",") if part.strip()]
    if not parts:
        raise ValueError("no density given: write for example 1,0.6,0.5")
    return tuple(dict.fromkeys(parse_density(part) for part in parts))


def parse_sparsities(text: str) -> tuple[float, ...]:
    """`0.9,0.95` to the densities 0.1 and 0.05, in decimal arithmetic: 0.1 and no 0.0999...98."""
    try:
        densities = [1 - Decimal(part) for part in text.strip("[]() ").split(",") if part.strip()]
        return parse_densities(",".join(map(str, densities)))
    except (ArithmeticError, ValueError):
        raise ValueError(f"{text!r}: sparsities are numbers in [0, 1), as 0.9,0.95") from None


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

    save_dir: str = flag("result", "folder for all results", parse=path_or_word)
    experiment_name: str = flag("vpns", "folder of the experiment in it")
    seed: int = flag(7, "seed of all random draws", parse=number(int, 0, 2**63 - 1))
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps", parse=device_name)
    gpu: int | None = flag(None, "number of the GPU, as in --device cuda:N", parse=number(int, 0))
    resume: str = flag(
        "auto", "auto continues the run with the same settings; none starts afresh and keeps the "
        "old folder under another name; or the path of a run folder or of its newest state, which "
        "must be good: only auto goes back to the state before a damaged one", parse=path_or_word)
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
    config: str | None = flag(
        None, "read settings back from the config.json of a run, or from YAML; typed flags win",
        parse=path_or_word)
    wandb: str | None = flag(
        None, "show the run in this project of Weights & Biases (pip install wandb), too")
    dry_run: bool = flag(False, "print the resolved plan as JSON and stop")
    check_data: bool = flag(
        False, "examine every image of the dataset, print what is found and stop", group="data")
    debug: bool = flag(False, "show the traceback of an error")
    evaluate: str | None = flag(
        None, "measure a checkpoint and stop: a model.safetensors or state of ours, a .pth of the "
        "authors, a URL, hf://OWNER/REPO, a Google Drive link, or a name of the model zoo (--zoo)",
        parse=path_or_word, group="evaluation")
    zoo: bool = flag(
        False, "list the published checkpoints that --evaluate knows by name, and stop",
        group="evaluation")
    predict: tuple[str, ...] | None = flag(
        None, "name the class of pictures, or of those in folders, by the network of --model, and "
        "stop", parse=path_or_word, many=True, group="use")
    export: str | None = flag(
        None, "write a model.safetensors as programs that need nothing of this project (.pt2, "
        "ONNX) into the folder --to, and stop", parse=path_or_word, group="use")
    push_to: str | None = flag(
        None, "let --export put its folder into this repository OWNER/REPO of the Hugging Face hub "
        "(pip install huggingface_hub), too", group="use")
    pack: str | None = flag(
        None, "write a model.safetensors as a small file, --to, and stop", parse=path_or_word,
        group="use")
    profile: str | None = flag(
        None, "measure sizes, arithmetic and time of a model.safetensors, and stop",
        parse=path_or_word, group="use")
    compact: str | None = flag(
        None, "remove the dead channels of a model.safetensors: write the smaller network, as "
        "--export does, and the proof of equal outputs into the folder --to, and stop",
        parse=path_or_word, group="use")
    model: str | None = flag(
        None, "model.safetensors for --predict", parse=path_or_word, group="use")
    to: str | None = flag(
        None, "where --export, --compact and --pack write, and --predict a CSV", parse=path_or_word,
        group="use")
    clean: bool = flag(False, "leave the prompt out in --predict and --export", group="use")
    half: bool = flag(False, "let --pack keep weights in float16", group="use")
    classes_by_position: bool = flag(
        False, "let --evaluate take classes of other names for those of the model, by their places",
        group="evaluation")
    details: bool = flag(
        False, "let --evaluate tell top-5, the accuracy of each class and the calibration error; "
        "they and the confusions are written to the folder --to", group="evaluation")
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
    sparsity: tuple[float, ...] | None = flag(
        None, "sparsities in the place of densities: 0.9,0.95 is --density_list 0.1,0.05",
        parse=parse_sparsities, identity=False)
    granularity: str = flag(
        WEIGHT, "what is pruned together: single weights (weight), whole channels (channel: "
        "densities are shares of channels), or all but N of every M weights along the inputs "
        "(nm:N:M, such as nm:2:4, whose density is N / M)", parse=granularity_named)
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
        "the paper's runs for this network, dataset and method; vit has AdamW, a warm-up and "
        "smooth labels, for transformers; typed flags win",
        choices=("none", "paper", "vit"), identity=False)
    init_mask: str | None = flag(
        None, "file to take the mask from instead of searching: a model file of ours, or tensors "
        "with weight_mask or popup_scores keys", parse=path_or_word)
    init_from: str | None = flag(
        None, "file to take mask, weights, BatchNorm and prompt from; without a value, the file "
        "of --init_mask", parse=path_or_word, bare="")
    from_dense: bool = flag(
        False, "start from the dense network, fine-tuned first: a run of its own, once for all "
        "runs that need it")
    density_schedule: str = flag(
        "constant", "how the density goes in a search that learns scores: cubic falls from 1 to "
        "the one asked for, as in Zhu and Gupta 2017", choices=("constant", "cubic"))
    distill: str | None = flag(
        None, "learn from the logits of this model file, too, search and fine-tuning alike (Hinton "
        "et al. 2015); without a value, of the dense network that --from_dense starts from",
        parse=path_or_word, bare="")
    post_prompt: str = flag(
        "none", "train a fresh prompt alone at the end: zeroshot instead of fine-tuning, "
        "finetuned after", choices=("none", "zeroshot", "finetuned"))
