"""What is kept of a finished level and of the run so far."""

from typing import Any

from torch import Tensor

from models import PromptedClassifier
from models.artifact import export, masks_of
from program.settings import Config
from pruning import METHODS
from pruning.masks import Masks, kept_count, prunable, pruned_count, total_count
from pruning.measure import Counts
from runfolder.identity import model_flags
from runfolder.level import Level
from runfolder.results import draw_run
from runfolder.run import Run
from runfolder.surroundings import environment
from utils.config import flatten
from utils.errors import VPNsError


def record(log: Run) -> None:
    """Bring results.csv and curves.png up to date with the finished levels."""
    log.write_results()
    draw_run(log.folder)


def percent(counts: Counts) -> float:
    """Accuracy in percent, to four decimals."""
    return round(counts.accuracy, 4)


def exported(
    config: Config, level: Level, model: PromptedClassifier, masks: Masks
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and values for a model file, compared with the density asked for, to the weight.

    Raises VPNsError unless the masks have the exact count, the network that was measured has
    zeros where they prune, and the file has +0.0 there and gives the same masks back.
    """
    try:
        require_count(config, level.density, masks)
    except ValueError as error:
        raise VPNsError(f"{error}, the model is not saved: a bug") from error
    tensors, meta = export(model, masks)
    read = masks_of(tensors, meta)
    for name, weight in prunable(model.network).items():
        pruned = ~masks[name]
        written = tensors[name][pruned]
        wrong = int(weight[pruned].count_nonzero()) + int((read[name] != masks[name]).sum())
        wrong += int((written.signbit() | (written != 0)).sum())
        if wrong:
            raise VPNsError(
                f"density {level.density:g}: {name} does not follow its mask in {wrong} places, "
                "the model is not saved: a bug"
            )
    return tensors, meta


def require_count(config: Config, density: float, masks: Masks) -> None:
    """Raises ValueError unless the masks keep exactly what the density asks for.

    The masks of a method whose count is not exact keep what they keep; the real density is told.
    """
    total, kept = total_count(masks), kept_count(masks)
    asked = total - pruned_count(total, density)
    if kept != asked and METHODS[config.method.prune_method].exact:
        raise ValueError(
            f"density {density:g}: the mask keeps {kept} of {total} weights instead of {asked}"
        )


def results_row(level: Level, masks: Masks) -> dict[str, Any]:
    """The counts of a level."""
    total, kept = total_count(masks), kept_count(masks)
    return {
        "density": level.density,
        "real_density": round(kept / total, 9),
        "kept": kept,
        "prunable": total,
        "passes": round(level.log.passes, 4),
    }


def describe(config: Config, level: Level) -> dict[str, Any]:
    """What a model file says of itself beside its tensors."""
    return {
        "network": config.network.network,
        "dataset": config.data.dataset,
        "density": level.density,
        "sizes": vars(config.sizes),
        "prompt": config.prompt.prompt_method,
        "config": model_flags(flatten(config)),
        "versions": {n: environment()[n] for n in ("python", "torch", "torchvision")},
    }


def save_level(
    config: Config, level: Level, model: PromptedClassifier, masks: Masks, row: dict[str, Any]
) -> None:
    """Write model.safetensors, which also ends the level."""
    tensors, meta = exported(config, level, model, masks)
    level.finish(tensors, meta | describe(config, level) | {"result": row})
    prompted = "" if row["prompted"] is None else f", prompted {row['prompted']:.2f} %"
    level.run.say(
        f"density {level.density:g}: {row['kept']:,} of {row['prunable']:,} weights kept, "
        f"accuracy {row['clean']:.2f} %{prompted} ({level.model_path})"
    )
