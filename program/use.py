"""What is done with finished networks: measure, predict, export, pack, profile, compact."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from data.layouts import is_image
from data.picture import decode
from models.deployed import load_pruned
from program.compact import compact
from program.evaluation import evaluate_checkpoint
from program.export import export
from program.profile import profile
from program.settings import Config, Typed, named
from utils.checkpoint import load_model, write_side_car
from utils.device import choose_device
from utils.errors import DataError, UsageError, printable
from utils.files import atomic_write, below, csv_text, write_streamed
from utils.packed import pack

Use = Callable[[Config, Typed], dict[str, Any]]


def use(config: Config, typed: Typed) -> dict[str, Any] | None:
    """The RESULT values of what the flags ask for; None when they ask for a run."""
    uses: dict[str, Use] = {"evaluate": evaluate_checkpoint, "predict": predict, "export": export,
                            "pack": packed, "profile": profile, "compact": compact}  # fmt: skip
    for name, work in uses.items():
        if getattr(config.run, name) is not None:
            return work(config, typed)
    return None


@torch.no_grad()
def predict(config: Config, typed: Typed) -> dict[str, Any]:
    """Print name and probability for each picture, or write them to `--to` as CSV.

    A folder stands for the pictures in it, however deep. Raises UsageError without a model,
    DataError for a picture that cannot be read.
    """
    run = config.run
    if run.model is None:
        raise UsageError("--predict needs a model: name its model.safetensors with --model")
    device = choose_device(run.device, run.gpu)
    model, names = load_pruned(run.model, run.clean, named(config, typed))
    model.to(device)
    pictures, rows = list(_pictures(run.predict)), [("picture", "class", "probability")]
    for path in pictures:
        chances = model(decode(path)[None].to(device))[0]
        name, chance = names[int(chances.argmax())], f"{float(chances.max()):.4f}"
        rows.append((str(path), name, chance))
        if run.to is None:
            print(printable(f"{chance}  {name}  {path}"))
    if run.to is not None:
        atomic_write(Path(run.to), csv_text(rows))
    return {"model": run.model, "pictures": len(pictures), "to": run.to}


def _pictures(given: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, given):
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if not path.is_dir():
            yield path
        elif found := sorted(p for p in below(path) if is_image(p.name)):
            yield from found
        else:
            raise DataError(f"{path} holds no pictures")


def packed(config: Config, typed: Typed) -> dict[str, Any]:
    """Write a model file as a small one, lossless unless `--half`; its sizes in bytes."""
    run = config.run
    if run.to is None:
        raise UsageError("--pack needs a name for the small file: give it with --to")
    source, target = Path(run.pack), Path(run.to)
    tensors, meta = load_model(source)
    data = save(pack(tensors, meta["masks"], meta, run.half), metadata={"format": "vpns packed"})
    write_streamed(target, lambda file: file.write(data), lambda sum_: write_side_car(target, sum_))
    before, after = source.stat().st_size, target.stat().st_size
    print(f"{source}: {before:,} bytes; {target}: {after:,}, {before / after:.1f} times as small")
    return {"packed": str(target), "bytes": after, "before": before, "half": run.half}
