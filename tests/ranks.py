"""Several processes that make one run together, as torchrun starts them: forks of this one."""

import os
import socket
import traceback
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import cli
import torch
import torch.distributed as dist

from utils import together

NUMBERS = count(1)  # of the runs that have met
Before = Callable[[int], None]  # told the rank, in the fork of that rank


def nothing(rank: int) -> None:
    """The preparation of forks that need none."""


def environment(rank: int, world: int, port: int, number: int = 0) -> dict[str, str]:
    """The variables that torchrun sets; `number` is that of the try."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(number)}  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@cache
def meeting_place() -> dist.TCPStore:
    """What torchrun's agent holds for its processes, so that it outlives each of them.

    One for all tests: a fork that drops the one of an earlier test would wait for its thread.
    """
    return dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)


def begin(save_dir: Path, world: int, *words: object, before: Before = nothing) -> list[int]:
    """A small training run in `world` forks; the numbers of their processes."""
    port, number = meeting_place().port, next(NUMBERS)

    def prepared(rank: int) -> Callable[[], None]:
        def prepare() -> None:
            os.environ.update(environment(rank, world, port, number))
            before(rank)

        return prepare

    return [
        cli.begin(text_of(save_dir, rank), "--save_dir", save_dir, *words, before=prepared(rank))
        for rank in range(world)
    ]


def text_of(save_dir: Path, rank: int) -> Path:
    """Where the output of a rank goes, with an ending."""
    return save_dir.with_name(f"{save_dir.name}-{rank}")


def run(save_dir: Path, world: int, *words: object, before: Before = nothing) -> list[cli.Done]:
    """What a small training run in `world` forks left behind, by rank."""
    children = begin(save_dir, world, *words, before=before)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [cli.done(text_of(save_dir, rank), code) for rank, code in enumerate(codes)]


def results(folder: Path, world: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(rank)` returns in each of `world` processes that have met."""
    port, number, children = meeting_place().port, next(NUMBERS), []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.environ.update(environment(rank, world, port, number))
                torch.set_num_threads(1)
                together.begin("cpu")
                torch.save(work(rank), folder / f"{rank}.pt")
                together.end()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), codes
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
