"""`--profile`: what a finished network costs, layer by layer and as a whole."""

import copy
import statistics
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.arithmetic import effective, multiply_adds
from models.artifact import masks_of
from models.deployed import Deployed, deployed
from program.export import as_onnx, has_onnx
from program.settings import Config, Typed, named
from runfolder.level import MODEL, PROFILE
from utils.checkpoint import load_model
from utils.errors import VPNsError, note
from utils.files import write_json
from utils.packed import pack

NUMBERS = ("weights", "kept", "dead", "macs", "effective")
BATCHES, TURNS = (1, 32), 31
Row = dict[str, Any]


@torch.no_grad()
def profile(config: Config, typed: Typed) -> Row:
    """Print a table of the layers, sizes on the disk, and times on this CPU; RESULT values.

    Beside a model of a run it leaves them as profile.json, for the report.
    """
    path = Path(config.run.profile)
    tensors, meta = load_model(path)
    model, _ = deployed(path, tensors, meta, config.run.clean, named(config, typed))
    masks = masks_of(tensors, meta)
    rows = layers(model, masks)
    width = max(len(row["layer"]) for row in rows)
    print(" ".join([f"{'layer':{width}}", *(f"{name:>13}" for name in NUMBERS)]))
    for row in rows:
        print(" ".join([f"{row['layer']:{width}}", *(f"{row[name]:>13,}" for name in NUMBERS)]))
    small = save(pack(tensors, meta["masks"], meta, half=False))
    total = {name: sum(row[name] for row in rows) for name in NUMBERS}
    sizes = {"plain": path.stat().st_size, "packed": len(small),
             "compressed": len(zlib.compress(path.read_bytes(), 9))}  # fmt: skip
    times = latencies({"": model})
    for what, numbers in (("all", total), ("bytes", sizes)):
        print(f"{what}: " + ", ".join(f"{name} {value:,}" for name, value in numbers.items()))
    for count, found in times.items():
        shown = ", ".join(f"{name} {ms:.2f}" for name, ms in found.items())
        print(f"ms for a batch of {count}, {torch.get_num_threads()} threads: {shown}")
    found = {**total, "bytes": sizes, "ms": times}
    if path.name == MODEL:  # of a run, whose report shows it
        try:
            write_json(path.with_name(PROFILE), found)
        except VPNsError as error:
            note(f"{error}; the report will not show it")
    return {"profiled": str(path), **found, "layers": rows}


def layers(model: Deployed, masks: dict[str, Tensor]) -> list[Row]:
    """Weights, how many stay, dead outputs, and multiply-adds of each weight, for one image.

    Effective ones are those of weights that stay; an output is dead when it has none.
    """
    image, rows = torch.zeros(1, 3, model.size, model.size, dtype=torch.uint8), []
    macs = multiply_adds(lambda: model(image))
    for name, mask in masks.items():
        layer = name.rpartition(".")[0]
        rows.append({"layer": layer, "weights": mask.numel(), "kept": int(mask.sum()),
                     "dead": int((~mask.flatten(1).any(1)).sum()), "macs": macs.get(layer, 0),
                     "effective": effective(macs, name, mask)})  # fmt: skip
    return rows


def latencies(
    models: Mapping[str, Deployed], compiles: bool = True
) -> dict[str, dict[str, float]]:
    """Milliseconds by the size of a batch, and by the model's name and what runs it.

    Models take turns; what runs them does not, as the threads of one are in the way of another's.
    """
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        for count in BATCHES:
            size = next(iter(models.values())).size
            images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
            times = {f"{name}eager": ms for name, ms in medians(models, images).items()}
            if compiles:
                with suppress(Exception):  # no compiler, or a network that cannot be compiled
                    runs = {n: torch.compile(copy.deepcopy(model)) for n, model in models.items()}
                    times |= {f"{n}compiled": ms for n, ms in medians(runs, images).items()}
            found[str(count)] = times
        if has_onnx():
            path = Path(folder, "model.onnx")
            runs = {name: as_onnx(model, (), path) for name, model in models.items()}
            for count, times in found.items():
                some = images[: int(count)]
                times |= {f"{n}onnxruntime": ms for n, ms in medians(runs, some).items()}
    return found


def medians(runs: Mapping[str, Callable[[Tensor], Any]], images: Tensor) -> dict[str, float]:
    """Median milliseconds of runs that take turns, back and forth, after one each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + TURNS):
        for name in runs if turn % 2 else reversed(runs):
            start = time.perf_counter()
            runs[name](images)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: round(1000 * statistics.median(s), 3) for name, s in seconds.items()}
