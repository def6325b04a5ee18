"""When a training state is due."""

import pytest

from runfolder.stage_log import Pace


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("every", "epochs", "expected"),
    [(1, 3, [1, 2, 3]), (2, 4, [2, 4]), (2, 5, [2, 4, 5]), (3, 4, [3, 4]), (9, 2, [2])],
)
def test_a_state_is_due_every_so_many_epochs_and_at_the_end(
    every: int, epochs: int, expected: list[int]
) -> None:
    pace = Pace(every)
    assert [done for done in range(1, epochs + 1) if pace.due(done, epochs)] == expected


def test_a_state_is_late_when_the_minutes_have_passed() -> None:
    clock = Clock()
    pace = Pace(minutes=2, clock=clock)
    clock.now += 119
    assert not pace.late()
    clock.now += 1
    assert pace.late()


def test_the_minutes_count_from_the_last_state() -> None:
    clock = Clock()
    pace = Pace(minutes=2, clock=clock)
    clock.now += 120
    pace.restart()
    assert not pace.late()


def test_no_minutes_are_never_over() -> None:
    clock = Clock()
    pace = Pace(minutes=0, clock=clock)
    clock.now += 1e9
    assert not pace.late()
