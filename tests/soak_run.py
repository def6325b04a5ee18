"""One command line, started, disturbed by signals and started again until it is done."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import cli

from runfolder.run import Run
from utils.signals import SIGNALS, Stop

NUMBERS_OF_KILLS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12)
LATER = 1.2  # a disturbed run takes longer, so that kills come later than in an undisturbed one
AT_ONCE = 0.2  # share of the kills that are followed by another within 0.3 s
PATIENCE = 8  # undisturbed runs; after so long an attempt hangs
ORPHANED = 20.0  # seconds; a data worker looks for its parent every 5


@dataclass(frozen=True)
class Kill:
    """A signal, so many seconds after the start or the signal before, to one process or to all."""

    after: float
    name: str
    whole_group: bool


Plan = list[list[Kill]]  # an attempt each


def draw_plan(draw: Random, life: float) -> Plan:
    """Kills at random moments of a run that takes `life` seconds undisturbed."""
    count = draw.choice(NUMBERS_OF_KILLS)
    moments = sorted(draw.uniform(0, LATER * life) for _ in range(count))
    plan = []
    for before, moment in zip([0.0, *moments], moments, strict=False):
        kills = [draw_kill(draw, moment - before)]
        if draw.random() < AT_ONCE:
            kills.append(draw_kill(draw, draw.uniform(0, 0.3)))
        plan.append(kills)
    return plan


def draw_kill(draw: Random, after: float) -> Kill:
    """Any of the signals, to the process or to its group."""
    return Kill(after, draw.choice(("SIGKILL", *SIGNALS)), draw.random() < 0.5)


@dataclass(frozen=True)
class Attempt:
    """One start of the command: how it ended, what was sent, memory at its peak, open files.

    The memory is what came to that of the process it was forked from.
    """

    code: int
    sent: list[str]
    mib: float
    files: int
    err: str

    @property
    def fine(self) -> bool:
        """Done, or stopped by what was sent."""
        allowed = {0, *(75 for _ in self.sent), *(-getattr(signal, name) for name in self.sent)}
        return self.code in allowed and "Traceback" not in self.err


class Child:
    """An attempt, in a process group of its own, forked from this warm process."""

    def __init__(self, words: Sequence[object], save_dir: Path, stop: Stop) -> None:
        self._save_dir, self._stop = save_dir, stop
        self._note = save_dir.with_name(f"{save_dir.name}.files")
        self._note.unlink(missing_ok=True)
        self._mib_before = resident()
        self._ended: tuple[int, float] | None = None
        self.pid = cli.begin(save_dir, *words, before=self._prepare)

    def _prepare(self) -> None:
        """In the child: signals as in a new process, and a note of the files open at the end."""
        os.setpgid(0, 0)
        for name in SIGNALS:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        cli.at_call(Run, "close", 1, self._count_files, after=False)

    def _count_files(self) -> None:
        self._note.write_text(str(len(os.listdir("/proc/self/fd"))))

    def ends_within(self, seconds: float) -> bool:
        """Wait so long for the end. Raises Interrupted when we are to stop."""
        limit = time.monotonic() + seconds
        while not self._reap(os.WNOHANG):
            if self._stop.requested:
                self._stop.now()
            if time.monotonic() > limit:
                return False
            time.sleep(0.003)
        return True

    def _reap(self, options: int) -> bool:
        if self._ended is None:
            pid, status, usage = os.wait4(self.pid, options)
            if pid:
                self._ended = os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024
        return self._ended is not None

    def send(self, name: str, whole_group: bool) -> None:
        """A signal to the process or to its group, which it may not have made yet."""
        if whole_group and self._has_group():
            os.killpg(self.pid, getattr(signal, name))
        else:
            os.kill(self.pid, getattr(signal, name))

    def _has_group(self) -> bool:
        return self.pid in survivors([self.pid])

    def kill(self) -> None:
        """End it at once, and what is left of its group."""
        if self._ended is None:
            self.send("SIGKILL", whole_group=True)
            self._reap(0)
        for pid in survivors([self.pid]):
            os.kill(pid, signal.SIGKILL)

    def attempt(self, sent: list[str]) -> Attempt:
        """How it ended."""
        code, peak = self._ended
        err = cli.done(self._save_dir, code).err if code >= 0 else ""
        files = int(self._note.read_text()) if code == 0 else 0
        return Attempt(code, sent, peak - self._mib_before, files, err)


def resident() -> float:
    """The memory of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def survivors(groups: Sequence[int]) -> list[int]:
    """The living processes of these process groups."""
    return [pid for pid, group in processes() if group in groups]


def processes() -> Iterator[tuple[int, int]]:
    """Number and group of every living process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if state not in "ZX":
            yield int(path.parent.name), int(group)


@dataclass
class Runner:
    """A command line whose attempts are disturbed."""

    words: Sequence[object]
    save_dir: Path
    stop: Stop
    life: float = 60.0  # seconds that it takes undisturbed
    attempts: list[Attempt] = field(default_factory=list)
    _groups: list[int] = field(default_factory=list)

    def make(self, plan: Plan) -> None:
        """Disturb one attempt after another as planned, then leave it in peace."""
        for kills in (*plan, []):
            self.attempts.append(self._attempt(kills))
            if self.attempts[-1].code == 0 or not self.attempts[-1].fine:
                return

    def _attempt(self, kills: Sequence[Kill]) -> Attempt:
        child, sent = Child(self.words, self.save_dir, self.stop), []
        self._groups.append(child.pid)
        try:
            for kill in kills:
                if child.ends_within(kill.after):
                    break
                child.send(kill.name, kill.whole_group)
                sent.append(kill.name)
            hangs = not child.ends_within(PATIENCE * self.life)
        except BaseException:
            child.kill()
            raise
        if hangs:
            child.kill()
        return child.attempt(sent)

    def orphans(self) -> list[str]:
        """Processes that outlive the run; they are ended."""
        limit = time.monotonic() + ORPHANED
        while (left := survivors(self._groups)) and time.monotonic() < limit:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return [f"process {pid}" for pid in left]

    @property
    def kills(self) -> list[str]:
        """The signals that were sent."""
        return [name for attempt in self.attempts for name in attempt.sent]
