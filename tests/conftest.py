"""Small networks and data that many tests share."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The golden trajectory was measured with AVX2 kernels; those of AVX-512 round differently.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

from models.classifier import PromptedClassifier
from prompts import Sizes, build_prompt
from utils.errors import Interrupted
from utils.seed import generator

# A shell script's background job ignores it, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup; a handler is not inherited
    signal.signal(signal.SIGHUP, lambda *_: None)
# Tests time nothing, and fail or pass alike each time.
settings.register_profile("vpns", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("vpns")

SIZE, SOURCES, CLASSES = 8, 6, 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `last` come after all that may fork."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for one training state but not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def lockable(request, tmp_path):
    """A folder and a function that makes it read-only; a disk for root, who may write anywhere."""
    if os.geteuid() == 0:
        folder = request.getfixturevalue("small_disk")
        lock, unlock = ["mount", "-o", "remount,ro"], ["mount", "-o", "remount,rw"]
    else:
        folder = tmp_path
        lock, unlock = ["chmod", "-R", "a-w"], ["chmod", "-R", "u+w"]
    yield folder, lambda: subprocess.run([*lock, folder], check=True)
    subprocess.run([*unlock, folder], check=True)


def tiny_network(seed: int = 0) -> nn.Module:
    """Two convolutions, BatchNorm and a head: 3 * 8 * 9 + 8 * 8 * 9 + 8 * 6 prunable weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, SOURCES),
        )


def tiny_model(seed: int = 0, kind: str = "pad") -> PromptedClassifier:
    """The tiny network with a prompt and a fixed label mapping."""
    model = PromptedClassifier(tiny_network(seed), build_prompt(kind, Sizes(SIZE, SIZE, 2, 4)))
    model.label_map = torch.tensor([5, 0, 3, 1])
    return model


class TinyView:
    """Batches of random images whose order depends on the key."""

    def __init__(self, name: str, images: int = 24, batch_size: int = 8) -> None:
        self.name, self.images, self._batch = name, images, batch_size
        draw = generator("tiny", name)
        self.x = torch.rand(images, 3, SIZE, SIZE, generator=draw)
        self.y = torch.randint(0, CLASSES, (images,), generator=draw)

    def __len__(self) -> int:
        return -(-self.images // self._batch)

    def whole(self):
        return self

    def batches(self, *key: object, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(self.images, generator=generator(self.name, *key))
        for rows in order.split(self._batch)[start:]:
            yield self.x[rows], self.y[rows]


@dataclass
class TinyData:
    """The views of a run."""

    clean: TinyView = field(default_factory=lambda: TinyView("clean"))
    prompted: TinyView = field(default_factory=lambda: TinyView("prompted"))
    test: TinyView = field(default_factory=lambda: TinyView("test"))
    val: TinyView | None = None


class MemoryLog:
    """A stage's log that keeps everything in memory and may stop or resume anywhere."""

    def __init__(self, stop_after: int | None = None, state: dict[str, Any] | None = None) -> None:
        self.key: tuple[object, ...] = (7, 0.5)
        self.rows: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.passes = 0.0
        self._left, self._state = stop_after, state

    def resume(self, stage: str) -> dict[str, Any] | None:
        same = self._state is not None and self._state["stage"] == stage
        return self._state if same else None

    def steps(self, steps: range, title: str) -> Iterator[int]:
        yield from steps

    def answer_stop(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                raise Interrupted("stopped")

    def hold(self) -> AbstractContextManager[None]:
        return nullcontext()

    def wants_state(self, done: int | None, epochs: int) -> bool:
        return done is not None

    def wants_test(self, epoch: int, epochs: int) -> bool:
        return True

    def save(self, state: dict[str, Any]) -> None:
        self.states.append(_copied(state))

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        self.rows.append(row)

    def add_passes(self, passes: float) -> None:
        self.passes += passes


def _copied(value: Any) -> Any:
    import copy

    return copy.deepcopy(value)
