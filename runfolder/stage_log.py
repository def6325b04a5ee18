"""The log of the training stages of one level: progress, curves, stops, and when to save."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import nn
from tqdm import tqdm

from runfolder.run import Run
from runfolder.states import States
from utils.files import require_amounts
from utils.ranks import first
from utils.together import from_first

AFTER_SEARCH = ("finetune", "post_prompt")
PROGRESS = ("epoch", "step", "rows", "passes")  # the numbers of every state, whatever its stage


def require_progress(state: dict[str, Any], density: float | None = None) -> None:
    """Raises ValueError when a dict is no training state, or not one of the density given."""
    require_amounts(state, *PROGRESS)
    wrong = [name for name in PROGRESS[:3] if not isinstance(state[name], int)]
    if wrong or not isinstance(state["stage"], str):
        raise ValueError(f"a training state has {', '.join(wrong or ['stage'])}")
    if density is not None and state.get("density") != density:
        raise ValueError(f"a state of density {state.get('density')}")


class Pace:
    """When a state is due: `minutes` after the last one, and every `epochs` epochs (0: not)."""

    def __init__(
        self, epochs: int = 0, minutes: float = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._epochs, self._minutes, self._clock = epochs, minutes, clock
        self.restart()

    def restart(self) -> None:
        """Count the minutes from now: a state was written, or a stage begins."""
        self._last = self._clock()

    def late(self) -> bool:
        """Whether the minutes have passed."""
        return self._minutes > 0 and self._clock() - self._last >= 60 * self._minutes

    def due(self, done: int, epochs: int) -> bool:
        """Whether to write a state after `done` epochs; the next stage needs the last one."""
        return done == epochs or self._epochs > 0 and done % self._epochs == 0


class StageLog:
    """The log of pruning/stage.py: progress, states, curves and stops of one density."""

    def __init__(self, run: Run, density: float, states: States) -> None:
        self._run, self._density, self._states = run, density, states
        self.key: tuple[object, ...] = (run.flags["seed"], density)
        self.passes = 0.0
        self.rows = 0
        self._pace = Pace(run.flags["save_every"], run.flags["save_minutes"])
        self._late = False  # whether the minutes had passed after the last step
        self._newest: dict[str, Any] | None = None  # read by `begin`, until its stage begins
        self._title, self._started = "", time.monotonic()

    def begin(self, phase: str, rows: int = 0, passes: float = 0) -> None:
        """Start or go on with `search` or `finetune`, which has `rows` and `passes` before it.

        States of the other phase are leftovers of a search that has ended or starts again.
        """
        check = partial(require_progress, density=self._density)
        state, problems = from_first(partial(self._states.newest, check))
        for problem in problems:
            self._run.say(f"{problem}; going back to the state before it")
        if state:
            self._run.surroundings.require_state(state)
            if (state["stage"] in AFTER_SEARCH) != (phase in AFTER_SEARCH):
                self._states.remove_all()
                state = None
        self._newest = state
        self.rows, self.passes = state["rows"] if state else rows, passes
        count = self._run.metrics.cut_back(self._density, self.rows)
        if count < self.rows:
            self._run.say(f"note: metrics.jsonl is damaged: {self.rows - count} of {self.rows} "
                          f"epochs of density {self._density:g} are missing in the curves")

    def reached(self, stage: str) -> bool:
        """Whether the newest state is of this stage, so that those before it are over."""
        return self._newest is not None and self._newest["stage"] == stage

    def resume(self, stage: str) -> dict[str, Any] | None:
        """The newest state of this stage, which begins now, with its file under `path`; or None."""
        self._pace.restart()
        if not self.reached(stage):
            return None
        state, self._newest = self._newest, None
        self.rows, self.passes = state["rows"], state["passes"]
        epoch, step = state["epoch"], state["step"]
        where = f"step {step} of epoch {epoch + 1}" if step else f"epoch {epoch}"
        self._run.say(f"density {self._density:g}: continuing {stage} after {where}")
        return state | {"path": str(self._states.newest_path())}

    def steps(self, steps: range, title: str) -> Iterator[int]:
        """Count the iterations: a bar on a terminal, else a line every `print_freq`."""
        self._started = time.monotonic()
        self._title = f"density {self._density:g} {title}"
        bar = tqdm(steps, self._title, steps.stop, initial=steps.start, leave=False,
                   disable=None if first() else True, dynamic_ncols=True)
        with self.hold(), bar:
            for step in bar:
                yield step
                if bar.disable and (step + 1) % self._run.flags["print_freq"] == 0:
                    self._run.say(f"{self._title}: step {step + 1} of {steps.stop}")

    def hold(self) -> AbstractContextManager[None]:
        """Put a stop off to the end of the block."""
        return self._run.stop.hold()

    def answer_stop(self) -> None:
        """Raise Interrupted if a stop was asked for, of any of the processes."""
        stop = self._run.stop
        asked, self._late = self._run.agreed(bool(stop.requested), self._pace.late())
        if asked:
            stop.requested = stop.requested or "a signal to another process"
            stop.now()

    def wants_test(self, epoch: int, epochs: int) -> bool:
        """Whether to evaluate the test images after this epoch: for the curves, never to choose."""
        every, done = self._run.flags["eval_every"], epoch + 1
        return every > 0 and (done % every == 0 or done == epochs)

    def wants_state(self, done: int | None, epochs: int) -> bool:
        """Whether to save a state after `done` epochs of `epochs`; None is in mid-epoch."""
        return self._late or done is not None and self._pace.due(done, epochs)

    def save(self, state: dict[str, Any]) -> None:
        """Save a training state."""
        self._newest = None
        with self.hold():
            progress = {"rows": self.rows, "passes": self.passes, "density": self._density}
            around = self._run.surroundings.of_state() | {"config": self._run.flags}
            self._states.save(state | progress | around)
            self._pace.restart()
            self._late = False

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Record one finished epoch in metrics.jsonl, TensorBoard, log.txt and on the console."""
        row = {"density": self._density} | row
        row["seconds"] = round(time.monotonic() - self._started, 3)
        self.rows += 1
        self._run.metrics.add(row)
        prompt = getattr(model, "prompt", None)
        if prompt is not None:
            self._run.metrics.board.prompt(row, prompt.picture())
        measures = [name for name in row if name.endswith(("_loss", "_accuracy"))]
        values = ", ".join(f"{name.replace('_', ' ')} {row[name]:.2f}" for name in measures)
        rate = "/".join(f"{value:.2g}" for value in row["lr"])
        self._run.say(f"{self._title}: {values}, lr {rate}, {row['seconds']:.1f} s")

    def add_passes(self, passes: float) -> None:
        """Count forward and backward passes over the training set."""
        self.passes += passes


def level_name(density: float) -> str:
    """The folder of a density, in its shortest form: d0.1, d0.0225, d1."""
    return f"d{density!r}".removesuffix(".0")
