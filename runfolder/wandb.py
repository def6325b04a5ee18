"""Weights & Biases, where it is installed: the rows of metrics.jsonl, one after the other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WandB:
    """One run of W&B for a run folder, resumed with it. Offline with WANDB_MODE=offline."""

    def __init__(self, folder: Path, project: str, flags: Mapping[str, Any]) -> None:
        """Raises ImportError without the package, and its own errors without an account."""
        import wandb

        name = f"{folder.parent.name}-{folder.name}"
        # Its folder holds links, which a run folder does not.
        self._run = wandb.init(project=project, name=name, id=name, dir=folder.parents[1],
                               config=dict(flags), resume="allow")  # fmt: skip

    def add(self, numbers: Mapping[str, float]) -> None:
        """Numbers of one epoch or level by their tags."""
        self._run.log(dict(numbers))

    def close(self) -> None:
        """Let W&B send what it has."""
        self._run.finish()
