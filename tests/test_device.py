"""Which device a run computes on: `--device`, `--gpu`, and the GPU that becomes the current one."""

import pytest
import torch

from utils import device
from utils.device import choose_device
from utils.errors import UsageError, VPNsError


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu", None) == torch.device("cpu")


def test_auto_is_a_device_that_works() -> None:
    torch.empty(1, device=choose_device("auto", None))


@pytest.mark.parametrize("name", ["tpu9", "cuda:99", "", "cpu cuda"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(VPNsError, match="is not available here"):
        choose_device(name, None)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A machine with GPUs, on which nothing can be allocated; notes what becomes current."""
    current: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(device.torch, "empty", lambda *size, device: None)
    return current


@pytest.mark.parametrize(
    ("name", "gpu"), [("cuda:3", None), ("cuda", 3), ("auto", 3), ("cuda:3", 3)]
)
def test_the_gpu_of_the_run_becomes_the_current_one(
    gpus: list[object], name: str, gpu: int | None
) -> None:
    """Seeds, contexts and the name in env.json are those of the current GPU."""
    assert choose_device(name, gpu) == torch.device("cuda:3")
    assert gpus == [torch.device("cuda:3")]


def test_two_different_gpus_are_refused(gpus: list[object]) -> None:
    with pytest.raises(UsageError, match="name different GPUs"):
        choose_device("cuda:1", 3)


def test_a_gpu_beside_the_cpu_is_said_to_mean_nothing(capsys: pytest.CaptureFixture) -> None:
    assert choose_device("cpu", 3) == torch.device("cpu")
    assert capsys.readouterr().out == "note: --gpu 3 has no meaning with --device cpu\n"
