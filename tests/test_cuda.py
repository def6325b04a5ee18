"""On an NVIDIA GPU: the same masks as on the CPU, the same bits each time, stopped or not.

Skipped where there is none. Each run is a process of its own: a fork cannot use a GPU that its
parent uses.
"""

import signal
from pathlib import Path

import pytest
import torch
from cli import SMALL, finish, start, wait_for

from pruning.selection import select_top
from utils.files import sha256_file

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]
RUN = [*SMALL, "--device", "cuda", "--density_list", "0.1", "--epochs", 2, "--save_minutes", 0]
PRECISIONS = [[], ["--amp", "bf16"], ["--amp", "fp16"], ["--channels_last"], ["--full_float32"]]


def hashes(folder: Path) -> dict[str, str]:
    """The models of a run by their level."""
    models = sorted(folder.rglob("d*/model.safetensors"))
    assert models
    return {path.parent.name: sha256_file(path) for path in models}


def trained(folder: Path, *words: object) -> dict[str, str]:
    done = finish(start(*RUN, "--save_dir", folder, *words))
    assert done.code == 0, done.err
    return hashes(folder)


@pytest.mark.parametrize("kinds", [2, 1000, 2**23])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.6])
def test_a_gpu_selects_as_the_cpu_does(density: float, kinds: int) -> None:
    rng = torch.Generator().manual_seed(kinds)
    values = torch.randint(kinds, (3_000_000,), generator=rng).float()
    assert torch.equal(select_top(values.cuda(), density).cpu(), select_top(values, density))


@pytest.mark.parametrize("words", PRECISIONS, ids=str)
def test_two_equal_runs_end_in_the_same_bytes(tmp_path: Path, words: list[str]) -> None:
    assert trained(tmp_path / "one", *words) == trained(tmp_path / "two", *words)


@pytest.mark.parametrize("method", ["vpns", "hydra", "bip", "snip", "grasp", "synflow", "omp"])
def test_every_kind_of_method_ends_in_the_same_bytes(tmp_path: Path, method: str) -> None:
    words = ["--prune_method", method]
    assert trained(tmp_path / "one", *words) == trained(tmp_path / "two", *words)


@pytest.mark.parametrize("kind", ["fix", "random", "expand"])
def test_every_prompt_ends_in_the_same_bytes(tmp_path: Path, kind: str) -> None:
    words = ["--prompt_method", kind, "--input_size", 6]
    assert trained(tmp_path / "one", *words) == trained(tmp_path / "two", *words)


def test_a_run_that_was_stopped_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    process = start(*RUN, "--save_dir", tmp_path / "run")
    wait_for(lambda: list((tmp_path / "run").rglob("metrics.jsonl")), process)
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 75
    assert trained(tmp_path / "run") == whole


def test_a_model_of_a_gpu_is_measured_alike_on_the_cpu(tmp_path: Path) -> None:
    trained(tmp_path, "--full_float32")
    (model,) = tmp_path.rglob("d0.1/model.safetensors")
    results = [
        finish(start("--evaluate", model, "--device", device, "--full_float32")).result
        for device in ("cuda", "cpu")
    ]
    assert results[0] == results[1]
