"""Results that several levels and runs of an experiment share, such as the dense network of OMP.

Each lies under the hash of all that it depends on, so that it is computed once and never wrong.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import sleep
from typing import IO, Any

from torch import Tensor

from runfolder.own import InUse, guarded, lock, refuse_links
from runfolder.stage_log import StageLog
from utils.checkpoint import load_model, save_model
from utils.errors import VPNsError, note
from utils.files import require_amounts
from utils.tensors import require_like, understood
from utils.together import from_first

Tensors = dict[str, Tensor]
PAUSE = 1.0  # seconds between looks at what another run makes


class Shared:
    """A folder of shared results, each of which costs every run the passes of the first."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], log: StageLog, scratch: Path | None = None
    ) -> None:
        """`settings` holds every value that the results depend on.

        Files are first written to `scratch`, a folder of this run alone on the same disk, where
        the next start removes what a killed process leaves.
        """
        self._folder, self._settings, self._log, self._scratch = folder, settings, log, scratch
        self._waits = False

    def once(
        self, name: str, inputs: Mapping[str, Tensor], make: Callable[[], Tensors],
        like: Mapping[str, Tensor] | None = None,
    ) -> Tensors:  # fmt: skip
        """The result of `make`, from its file if it was made before from the same tensors.

        `inputs` holds every tensor that the result depends on; `like` has the names, shapes and
        types of the result. A file that is damaged or holds something else is made again. Of runs
        that need a result at the same time one makes it, and the others wait.
        """
        path = self._folder / f"{name}-{self._digest(name, inputs)}.safetensors"
        held: list[IO[str]] = []
        try:
            while not (found := from_first(partial(self._find, path, like or {}, held))):
                sleep(PAUSE)
            tensors, passes = found
            if tensors is None:
                before = self._log.passes
                tensors = make()
                passes = self._log.passes - before
                save_model(path, tensors, {"passes": passes}, self._scratch)
            else:
                self._log.add_passes(passes)
            return tensors
        finally:
            for file in held:  # who waits for it finds the result, or makes it
                path.with_suffix(".lock").unlink(missing_ok=True)
                file.close()

    def _find(
        self, path: Path, like: Mapping[str, Tensor], held: list[IO[str]]
    ) -> tuple[Tensors | None, float] | None:
        """The result and its passes; no tensors when it is to be made here, under a lock in `held`.

        None while another run makes it.
        """
        refuse_links(self._folder, self._folder.parent)
        if found := _read(path, like):
            return found
        with guarded(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            held.append(lock(path.with_suffix(".lock")))
        except InUse as error:
            if not self._waits:
                note(f"another run makes {path.name}, which this one waits for ({error})")
            self._waits = True
            return None
        return _read(path, like) or (None, 0)

    def _digest(self, name: str, inputs: Mapping[str, Tensor]) -> str:
        digest = hashlib.sha256(json.dumps([name, self._settings], sort_keys=True).encode())
        for key, tensor in sorted(inputs.items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _read(path: Path, like: Mapping[str, Tensor]) -> tuple[Tensors, float] | None:
    """A result and its passes; None when it is missing, damaged, or something else."""
    try:
        tensors, meta = load_model(path)
        with understood(path):
            require_like(like, tensors)
            require_amounts(meta, "passes")
        return tensors, meta["passes"]
    except VPNsError:
        return None
