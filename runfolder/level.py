"""One density of a run: its folder, its states, and what a training stage reports to."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from tqdm import tqdm

from runfolder.pace import Pace
from runfolder.run import Run, read_row
from runfolder.states import States
from utils.errors import VPNsError
from utils.model_file import load_model, save_model
from utils.tensors import require_amounts, understood

AFTER_SEARCH = ("finetune", "post_prompt")
PROGRESS = ("epoch", "step", "rows", "passes")  # the numbers of every state, whatever its stage


def level_name(density: float) -> str:
    """The folder of a density, in its shortest form: d0.1, d0.0225, d1."""
    return f"d{density!r}".removesuffix(".0")


def require_progress(state: dict[str, Any]) -> None:
    """Raises ValueError when a dict is no training state."""
    require_amounts(state, *PROGRESS)
    counts = {name: state[name] for name in PROGRESS[:3]}
    wrong = [name for name, value in counts.items() if not isinstance(value, int)]
    if wrong or not isinstance(state["stage"], str):
        raise ValueError(f"a training state has {', '.join(wrong or ['stage'])}")


class Level:
    """Everything that is kept of one density."""

    def __init__(self, run: Run, density: float, seed: int, eval_every: int = 1) -> None:
        self.run, self.density, self.eval_every = run, density, eval_every
        self.key: tuple[object, ...] = (seed, density)
        self.folder = run.folder / level_name(density)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model_path = self.folder / "model.safetensors"
        self.search_path = self.folder / "search.safetensors"
        self.previous: Level | None = None  # of a chained method, whose levels are no islands
        self.passes = 0.0
        self._states = States(self.folder)
        self._pace = Pace(run.flags["save_every"], run.flags["save_minutes"])
        self._rows = 0
        self._title = ""
        self._started = time.monotonic()

    def result(self) -> dict[str, Any] | None:
        """The results row of a finished level, or None."""
        if not self.model_path.exists():
            return None
        try:
            load_model(self.model_path)
            row = read_row(self.model_path)
            if row["density"] != self.density:
                raise VPNsError(f"{self.model_path} has density {row['density']}")
        except VPNsError as error:
            self.run.say(f"{error}; this level is made again")
            self.model_path.replace(self.model_path.with_suffix(".damaged"))
            return None
        if not self.run.flags["keep_states"]:
            self._states.remove_all()
        return row

    def searched(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Tensors and metadata of the end of the search, if it was reached."""
        if not self.search_path.exists():
            return None
        try:
            tensors, meta = load_model(self.search_path)
            with understood(self.search_path):
                require_amounts(meta["progress"], "rows", "passes")
                require_amounts(meta["accuracies"], "before", "after_search")
            return tensors, meta
        except VPNsError as error:
            self.run.say(f"{error}; the search is made again")
            return None

    def begin(self, phase: str, rows: int = 0, passes: float = 0) -> None:
        """Start or go on with `search` or `finetune`, which has `rows` and `passes` before it.

        States of the other phase are leftovers, of a search that has ended or that is made again.
        """
        state = self._newest()
        if state and (state["stage"] in AFTER_SEARCH) != (phase in AFTER_SEARCH):
            self._states.remove_all()
            state = None
        self._rows, self.passes = state["rows"] if state else rows, passes
        self.run.keep_metrics(self.density, self._rows)

    def _newest(self) -> dict[str, Any] | None:
        state, problems = self._states.newest(self._check)
        for problem in problems:
            self.run.say(f"{problem}; going back to the state before it")
        if state:
            self.run.require_surroundings(state)
        return state

    def _check(self, state: dict[str, Any]) -> None:
        require_progress(state)
        if state.get("density") != self.density:
            raise ValueError(f"a state of density {state.get('density')}")

    def reached(self, stage: str) -> bool:
        """Whether the newest state is of this stage, so that those before it are over."""
        state = self._newest()
        return state is not None and state["stage"] == stage

    def resume(self, stage: str) -> dict[str, Any] | None:
        """The newest state of this stage, which begins now, or None when it has none.

        With its file under `path`.
        """
        self._pace.restart()
        state = self._newest()
        if state is None or state["stage"] != stage:
            return None
        self._rows, self.passes = state["rows"], state["passes"]
        where = f"epoch {state['epoch']}"
        if state["step"]:
            where = f"step {state['step']} of epoch {state['epoch'] + 1}"
        self.run.say(f"density {self.density:g}: continuing {stage} after {where}")
        return state | {"path": str(self._states.newest_path())}

    def steps(self, steps: range, title: str) -> Iterator[int]:
        """Count the iterations: a bar on a terminal, else a line every `print_freq`."""
        self._started = time.monotonic()
        self._title = f"density {self.density:g} {title}"
        bar = tqdm(
            steps, self._title, steps.stop, initial=steps.start, disable=None, leave=False,
            dynamic_ncols=True,
        )  # fmt: skip
        with self.hold(), bar:
            for step in bar:
                yield step
                if bar.disable and (step + 1) % self.run.print_freq == 0:
                    self.run.say(f"{self._title}: step {step + 1} of {steps.stop}")

    def hold(self) -> AbstractContextManager[None]:
        """Put a stop off to the end of the block."""
        return self.run.stop.hold()

    def stop_requested(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.run.stop.requested)

    def stop(self) -> None:
        """Raise Interrupted."""
        self.run.stop.now()

    def wants_test(self, epoch: int, epochs: int) -> bool:
        """Whether this epoch is measured on the test images (for the curves, never to choose)."""
        done = epoch + 1
        return self.eval_every > 0 and (done % self.eval_every == 0 or done == epochs)

    def state_late(self) -> bool:
        """Whether --save_minutes have passed since the last state."""
        return self._pace.late()

    def state_due(self, done: int, epochs: int) -> bool:
        """Whether a state follows `done` epochs of `epochs`."""
        return self._pace.due(done, epochs)

    def save(self, state: dict[str, Any]) -> None:
        """Keep a training state."""
        with self.hold():
            progress = {"rows": self._rows, "passes": self.passes, "density": self.density}
            around = self.run.surroundings() | {"config": self.run.flags}
            self._states.save(state | progress | around)
            self._pace.restart()

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Record one finished epoch in metrics.jsonl, TensorBoard, log and console."""
        row = {"density": self.density} | row
        row["seconds"] = round(time.monotonic() - self._started, 3)
        self._rows += 1
        self.run.add_metrics(row)
        prompt = getattr(model, "prompt", None)
        if prompt is not None:
            self.run.picture(f"{level_name(self.density)}/prompt", prompt.picture())
        self.run.say(epoch_line(self._title, row))

    def add_passes(self, passes: float) -> None:
        """Count forward and backward passes over the training set."""
        self.passes += passes

    def note_layers(self, densities: dict[str, float]) -> None:
        """The density of each layer, for TensorBoard; a line on those that are empty."""
        for name, value in densities.items():
            self.run.scalar(f"{level_name(self.density)}/layers/{name}", value)
        empty = [name for name, value in densities.items() if value == 0]
        if empty:
            self.run.say(
                f"density {self.density:g}: the mask leaves no weight in {', '.join(empty)}; "
                "--min_layer_density would"
            )

    def save_search(self, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        """Keep the end of the search, from which fine-tuning starts; its states can go."""
        progress = {"rows": self._rows, "passes": self.passes}
        with self.hold():
            save_model(self.search_path, tensors, meta | {"progress": progress})
            self._states.remove_all()

    def finish(self, tensors: dict[str, Any], meta: dict[str, Any], keep_states: bool) -> None:
        """Keep the model and, unless asked otherwise, let the states go."""
        with self.hold():
            save_model(self.model_path, tensors, meta)
            if not keep_states:
                self._states.remove_all()


def epoch_line(title: str, row: dict[str, Any]) -> str:
    """One finished epoch in one line."""
    shown = [f"{name.replace('_', ' ')} {row[name]:.2f}" for name in row if _is_measure(name)]
    rate = "/".join(f"{value:.2g}" for value in row["lr"])
    return f"{title}: {', '.join(shown)}, lr {rate}, {row['seconds']:.1f} s"


def _is_measure(name: str) -> bool:
    return name.endswith(("_loss", "_accuracy"))
