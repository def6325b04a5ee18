"""`--evaluate`: measure a checkpoint of ours, of the authors, or of the model zoo."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data import load_data
from data.layouts import composed
from models import PromptedClassifier
from models.backbones import backbone
from models.fit import require_fit
from models.zoo import ZOO, fetch
from program.checkpoints import completed, read_checkpoint
from program.details import measure
from program.record import percent
from program.settings import Config, Typed, chosen_flags
from pruning.masks import kept_count, total_count
from runfolder.results import CONFUSIONS, draw_confusions
from utils.config import replace_flags
from utils.device import choose_device
from utils.errors import UsageError, optional, printable
from utils.ranks import first
from utils.together import one_first

PIXELS = 2**24  # at a time, whatever size a file asks for
WHOLE = {"train_images": 0, "val_fraction": 0.0}  # the part that is trained on has no say here


def evaluate_checkpoint(config: Config, typed: Typed) -> dict[str, Any]:
    """Clean and prompted accuracy, real sparsity and number of images of a checkpoint.

    Flags that were typed win over those in the file. Raises VPNsError for a file that cannot be
    had, read or understood, DataError for missing data, which are fetched only when --dataset or
    the zoo's row names them.
    """
    device, source = choose_device(config.run.device, config.run.gpu), config.run.evaluate
    path = one_first(partial(fetch, source))
    chosen = chosen_flags(config, typed)
    entry = ZOO.get(source)
    known = {} if entry is None else {"dataset": entry.dataset, "density": entry.density}
    checkpoint = read_checkpoint(path, known | chosen)
    fetched = {"download": "dataset" in known | chosen}
    flags = {**checkpoint.flags, **fetched, **known, **chosen, **WHOLE}
    config = completed(flags)
    if "batch_size" not in chosen:
        most = min(config.data.batch_size, max(1, PIXELS // config.pixels))
        config = replace_flags(config, {"batch_size": most})
    config.precision.begin(device)
    sizes = [config.sizes.input] + [config.sizes.output] * (checkpoint.model.prompt is not None)
    name = config.network.network
    require_fit(name, partial(backbone(name).build, checkpoint.model.sources), sizes)
    model = checkpoint.model.to(device)
    model.use(config.precision)
    data = load_data(config.data, config.data.input_size, config.data.batch_size, device)
    data = data.measured_in(config.measured_batch)
    if model.classes != len(data.classes):
        raise UsageError(f"{path} tells {model.classes} classes apart, {config.data.dataset} has "
                         f"{len(data.classes)}: name its dataset with --dataset")
    notes = [] if config.run.classes_by_position else put_in_order(model, data.classes)
    folder = Path(config.run.to) if config.run.details and config.run.to else None
    if folder and first():
        folder.mkdir(parents=True, exist_ok=True)
    clean, prompted, found = measure(model, data, model.prompt is not None, folder)
    if folder:
        with optional("picture of the confusions"):
            draw_confusions(folder / CONFUSIONS)
    kept, total = kept_count(checkpoint.masks), total_count(checkpoint.masks)
    return {
        "checkpoint": str(path), "network": config.network.network, "dataset": config.data.dataset,
        "clean": percent(clean), "prompted": percent(prompted), "claimed": checkpoint.claimed,
        "kept": kept, "prunable": total, "sparsity": round(1 - kept / total, 9),
        "images": clean.seen, "notes": [*checkpoint.notes, *data.notes, *notes],
    } | ({"details": found} if config.run.details else {})  # fmt: skip


def put_in_order(model: PromptedClassifier, classes: Sequence[str]) -> list[str]:
    """Give the outputs of a model the order that the classes of a dataset have; a line if it does.

    Raises UsageError for other classes than those that the model has learned.
    """
    learned, here = (list(map(composed, names)) for names in (model.names, classes))
    if not learned or learned == here:
        return []
    if other := sorted({*here} - {*learned}):
        missing = ", ".join(map(printable, sorted({*learned} - {*here})[:3]))
        raise UsageError(f"the model has not learned the class {printable(other[0])!r}, but "
                         f"{missing}: --classes_by_position takes the names for other words")
    order = torch.tensor([learned.index(name) for name in here], device=model.mean.device)
    model.label_map = order if model.label_map is None else model.label_map[order]
    return ["the classes come in another order than in training: mapped by their names"]
