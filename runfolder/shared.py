"""Results that several levels and runs of an experiment share, such as the dense network of OMP.

Each lies under the hash of all that it depends on, so that it is computed once and never wrong.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from runfolder.own import refuse_links
from runfolder.stage_log import StageLog
from utils.checkpoint import load_model, save_model
from utils.errors import VPNsError
from utils.files import require_amounts
from utils.tensors import require_like, understood

Tensors = dict[str, Tensor]


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

    def once(
        self, name: str, inputs: Mapping[str, Tensor], make: Callable[[], Tensors],
        like: Mapping[str, Tensor] | None = None,
    ) -> Tensors:  # fmt: skip
        """The result of `make`, from its file if it was made before from the same tensors.

        `inputs` holds every tensor that the result depends on; `like` has the names, shapes and
        types of the result. A file that is damaged or holds something else is made again.
        """
        refuse_links(self._folder, self._folder.parent)
        path = self._folder / f"{name}-{self._digest(name, inputs)}.safetensors"
        try:
            tensors, meta = load_model(path)
            with understood(path):
                require_like(like or {}, tensors)
                require_amounts(meta, "passes")
        except VPNsError:  # missing, damaged, or something else
            before = self._log.passes
            tensors = make()
            self._folder.mkdir(parents=True, exist_ok=True)
            save_model(path, tensors, {"passes": self._log.passes - before}, self._scratch)
        else:
            self._log.add_passes(meta["passes"])
        return tensors

    def _digest(self, name: str, inputs: Mapping[str, Tensor]) -> str:
        digest = hashlib.sha256(json.dumps([name, self._settings], sort_keys=True).encode())
        for key, tensor in sorted(inputs.items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
