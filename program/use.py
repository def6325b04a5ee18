"""What is done with finished networks: measure, predict, export, pack, profile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save

from program.evaluation import evaluate_checkpoint
from program.export import export
from program.prediction import predict
from program.profile import profile
from program.settings import Config
from utils.checkpoint import load_model, write_side_car
from utils.errors import UsageError
from utils.files import write_streamed
from utils.packed import pack

Use = Callable[[Config, set[str]], dict[str, Any]]


def use(config: Config, typed: set[str]) -> dict[str, Any] | None:
    """The RESULT values of what the flags ask for; None when they ask for a run."""
    uses: dict[str, Use] = {
        "evaluate": evaluate_checkpoint, "predict": predict, "export": export, "pack": packed,
        "profile": profile,
    }  # fmt: skip
    for name, work in uses.items():
        if getattr(config.run, name) is not None:
            return work(config, typed)
    return None


def packed(config: Config, typed: set[str]) -> dict[str, Any]:
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
