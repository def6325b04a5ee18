"""Being asked to stop: at once, or after what is in progress."""

import signal
import threading
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file

from utils import tensors
from utils.errors import Interrupted, VPNsError
from utils.signals import SIGNALS, Stop, signals_later
from utils.tensors import read_tensors


@pytest.fixture
def stop() -> Iterator[Stop]:
    """A Stop that answers signals; the handlers found are put back."""
    numbers = [getattr(signal, name) for name in SIGNALS]
    before = [signal.getsignal(number) for number in numbers]
    stop = Stop()
    stop.install()
    yield stop
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_answered_at_once_when_nothing_is_held(stop: Stop, name: str) -> None:
    with pytest.raises(Interrupted, match=name):
        signal.raise_signal(getattr(signal, name))


def test_a_closed_terminal_stays_ignored_where_nohup_has_it_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handlers = [signal.getsignal(getattr(signal, name)) for name in SIGNALS[:4]]
    try:
        stop = Stop()
        stop.install()
        with signals_later(), stop.hold():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
        for name, handler in zip(SIGNALS[:4], handlers, strict=True):
            signal.signal(getattr(signal, name), handler)


def test_the_exit_code_is_75(stop: Stop) -> None:
    with pytest.raises(Interrupted) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 75


def test_a_held_signal_waits_for_the_end_of_the_block(stop: Stop) -> None:
    reached = []
    with pytest.raises(Interrupted), stop.hold():
        signal.raise_signal(signal.SIGTERM)
        reached.append(stop.requested)
    assert reached == ["SIGTERM"]


def test_only_the_outermost_block_lets_go(stop: Stop) -> None:
    reached = []
    with pytest.raises(Interrupted), stop.hold():
        with stop.hold():
            signal.raise_signal(signal.SIGUSR1)
        reached.append("after the inner block")
    assert reached


def test_a_block_without_a_signal_ends_quietly(stop: Stop) -> None:
    with stop.hold():
        pass
    assert stop.requested == ""


def test_an_error_in_a_held_block_is_not_hidden(stop: Stop) -> None:
    with pytest.raises(ZeroDivisionError), stop.hold():
        signal.raise_signal(signal.SIGTERM)
        raise ZeroDivisionError


def test_after_an_error_in_a_held_block_signals_are_answered_again(stop: Stop) -> None:
    with pytest.raises(ZeroDivisionError), stop.hold():
        raise ZeroDivisionError
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_a_block_for_later_is_answered_after_it(stop: Stop) -> None:
    reached = []
    with pytest.raises(Interrupted, match="SIGUSR1"), signals_later():
        signal.raise_signal(signal.SIGUSR1)
        reached.append(stop.requested)
    assert reached == [""]


def test_handlers_are_put_back_after_an_error_too(stop: Stop) -> None:
    with pytest.raises(ZeroDivisionError), signals_later():
        raise ZeroDivisionError
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


def test_other_threads_leave_the_handlers_alone(stop: Stop) -> None:
    answers = []

    def work() -> None:
        with signals_later():
            answers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [signal.getsignal(signal.SIGTERM)]


def test_an_error_that_a_library_made_of_a_stop_is_the_stop(stop: Stop) -> None:
    """torch's constructor asks a sequence for an item, and replaces whatever that raises."""

    class Slow:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, place: int) -> float:
            signal.raise_signal(signal.SIGTERM)
            return 1.0

    with pytest.raises(ValueError, match="shape") as caught:
        torch.tensor(Slow())
    meant = stop.meant(caught.value)
    assert isinstance(meant, Interrupted) and "SIGTERM" in str(meant)


@pytest.mark.parametrize("error", [VPNsError("x"), OSError(28, "full"), MemoryError()])
def test_an_error_with_a_meaning_of_its_own_keeps_it_after_a_signal(stop: Stop, error) -> None:
    stop.requested = "SIGTERM"
    assert stop.meant(error) is error


def test_without_a_signal_every_error_is_itself(stop: Stop) -> None:
    error = ValueError("x")
    assert stop.meant(error) is error


def test_a_signal_that_waits_while_the_block_fails_is_answered_all_the_same(stop: Stop) -> None:
    with pytest.raises(Interrupted), signals_later():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("the block's own")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_signal_while_a_file_is_read_is_no_damage_to_it(
    stop: Stop, tmp_path, monkeypatch, name: str
) -> None:
    path = tmp_path / name
    values = {"a": torch.ones(3)}
    save_file(values, path) if name.endswith("safetensors") else torch.save(values, path)
    read = tensors._read

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGUSR2)
        return read(*arguments)

    monkeypatch.setattr(tensors, "_read", interrupted)
    with pytest.raises(Interrupted, match="SIGUSR2"):
        read_tensors(path)
