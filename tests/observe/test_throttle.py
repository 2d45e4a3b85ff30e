"""A lasting problem is logged when it begins, after a while, and when it ends: not each time it occurs."""

import pytest

from watcher.observe.log import AGAIN_S, FIRST_S, Streak, Throttle

HOUR, DAY = 3600, 86_400


@pytest.mark.parametrize(
    ("strikes_at", "spoken_at"),
    [
        ([0], [0]),
        ([0, 0, 1, 2], [0]),
        (range(0, HOUR, 60), [0]),
        ([0, HOUR - 1, HOUR], [0, HOUR]),
        (range(0, 4 * DAY, 60), [0, HOUR, HOUR + DAY, HOUR + 2 * DAY, HOUR + 3 * DAY]),
        ([0, 5 * HOUR, 6 * HOUR, 28 * HOUR, 30 * HOUR], [0, 5 * HOUR, 30 * HOUR]),
        ([7 * DAY, 7 * DAY + 1], [7 * DAY]),
    ],
)
def test_a_lasting_problem_is_logged_at_once_after_an_hour_and_then_daily(
    strikes_at: list[int], spoken_at: list[int]
) -> None:
    throttle = Throttle()
    assert [now for now in strikes_at if throttle.struck("down", float(now))] == spoken_at


def test_a_reminder_says_how_long_it_lasts_and_how_often_it_occurred() -> None:
    throttle = Throttle()
    assert throttle.struck("down", 10.0) == Streak(0, 1)
    assert throttle.struck("down", 11.5) is None
    assert throttle.struck("down", 10 + FIRST_S) == Streak(3_600_000, 3)
    assert throttle.struck("down", 10 + FIRST_S + AGAIN_S) == Streak(90_000_000, 4)
    assert throttle.over("down", 20 + FIRST_S + AGAIN_S) == Streak(90_010_000, 4)


def test_the_end_is_logged_once_and_only_after_a_beginning() -> None:
    throttle = Throttle()
    assert throttle.over("down", 1.0) is None
    throttle.struck("down", 2.0)
    assert throttle.over("down", 3.5) == Streak(1500, 1)
    assert throttle.over("down", 4.0) is None
    assert throttle.struck("down", 5.0) == Streak(0, 1)


def test_problems_are_throttled_separately_and_forgotten_once_over() -> None:
    throttle = Throttle()
    for name in ("shop", "bank"):
        assert throttle.struck(name, 0.0) == Streak(0, 1)
    assert throttle.over("shop", 9.0) == Streak(9000, 1)
    assert throttle.struck("bank", 9.0) is None
    throttle.over("bank", 9.0)
    assert not any(vars(throttle).values())
