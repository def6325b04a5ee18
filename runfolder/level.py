"""One density of a run: its folder, with the end of its search and its finished model."""

from collections.abc import Callable
from typing import Any

from runfolder.run import Run, read_row
from runfolder.stage_log import StageLog, level_name
from runfolder.states import States
from utils.checkpoint import load_model, save_model
from utils.errors import VPNsError
from utils.files import require_amounts
from utils.ranks import first
from utils.tensors import understood

MODEL, PROFILE = "model.safetensors", "profile.json"
SEARCHED = ("before", "after_search")  # the accuracies that the end of a search keeps


class Level:
    """The files of one density; its training stages report to `log`."""

    def __init__(self, run: Run, density: float) -> None:
        self.run, self.density = run, density
        self.folder = run.folder / level_name(density)
        if first():
            self.folder.mkdir(parents=True, exist_ok=True)
        self.model_path = self.folder / MODEL
        self.search_path = self.folder / "search.safetensors"
        self.previous: Level | None = None  # of a chained method, whose levels are no islands
        self.read = False  # whether an accuracy of its row was read, and not measured now
        self._states = States(self.folder)
        self.log = StageLog(run, density, self._states)

    def result(self, check: Callable[..., None] = lambda *_: None) -> dict[str, Any] | None:
        """The results row of a finished level, or None.

        One whose row is refused is made again; `check` is that of `row`.
        """
        if not self.model_path.exists():
            return None
        try:
            row = self.row(check)
        except VPNsError as error:
            self.run.say(f"{error}; this level is made again")
            self.model_path.replace(self.model_path.with_suffix(".damaged"))
            return None
        if not self.run.flags["keep_states"]:
            self._states.remove_all()
        self.read, self.run.rows[self.folder.name] = True, row
        return row

    def row(self, check: Callable[..., None]) -> dict[str, Any]:
        """The results row in the model file, of known columns alone.

        `check(tensors, meta, row)` raises ValueError when the row is not of these tensors. Raises
        VPNsError then, and for a file that is damaged or of another density.
        """
        tensors, meta = load_model(self.model_path)
        row = read_row(self.model_path, meta)
        if row["density"] != self.density:
            raise VPNsError(f"{self.model_path} has density {row['density']}")
        with understood(self.model_path):
            check(tensors, meta, row)
        return row

    def searched(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Tensors and metadata of the end of the search, if it was reached."""
        if not self.search_path.exists():
            return None
        try:
            tensors, meta = load_model(self.search_path)
            with understood(self.search_path):
                require_amounts(meta["progress"], "rows", "passes")
                require_amounts(meta["accuracies"], *SEARCHED, most=100)
            self.read = True
            return tensors, meta
        except VPNsError as error:
            self.run.say(f"{error}; the search is made again")
            return None

    def note_layers(self, densities: dict[str, float]) -> None:
        """The density of each weight, for TensorBoard; a line on those that are empty."""
        self.run.metrics.board.layers(self.density, densities)
        empty = [name.removesuffix(".weight") for name, value in densities.items() if value == 0]
        if empty:
            self.run.say(f"density {self.density:g}: the mask leaves no weight in "
                         f"{', '.join(empty)}; --min_layer_density would")

    def save_search(self, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        """Keep the end of the search, from which fine-tuning starts; its states can go."""
        progress = {"rows": self.log.rows, "passes": self.log.passes}
        with self.log.hold():
            save_model(self.search_path, tensors, meta | {"progress": progress})
            if self.run.flags["keep_states"]:
                self._states.set_aside()
            self._states.remove_all()

    def finish(self, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        """Keep the model; its states can go."""
        with self.log.hold():
            save_model(self.model_path, tensors, meta)
            self.run.rows[self.folder.name] = meta["result"]
            self.run.metrics.finished(meta["result"])
            if not self.run.flags["keep_states"]:
                self._states.remove_all()
