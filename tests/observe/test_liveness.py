"""What a worker knows of its own health: turns of its loops, the lag of its event loop, its clock."""

import asyncio
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from watcher.observe import liveness as vitals_room
from watcher.observe.liveness import STUCK_AFTER_S, Liveness, rss_mb


def test_a_loop_is_stuck_when_it_has_begun_no_turn_for_too_long() -> None:
    turned_at = {"deliver": 1000.0, "poll shop": 990.0}
    liveness = Liveness("w", lambda: turned_at)
    assert liveness.stuck(990 + STUCK_AFTER_S) == {}
    assert liveness.stuck(990.5 + STUCK_AFTER_S) == {"poll shop": STUCK_AFTER_S + 0.5}
    assert set(liveness.stuck(1001 + STUCK_AFTER_S)) == {"deliver", "poll shop"}
    turned_at["poll shop"] = 1001 + STUCK_AFTER_S
    assert set(liveness.stuck(1001 + STUCK_AFTER_S)) == {"deliver"}


def test_without_a_loop_nothing_is_stuck() -> None:
    assert Liveness("w", dict).stuck(1e9) == {}


def test_the_worst_lag_is_shown_for_one_to_two_minutes() -> None:
    liveness = Liveness("w", dict)
    for lag_s in (0.01, 0.3, 0.02):
        liveness.note_lag(lag_s)
    assert liveness.lag_s == 0.3
    assert liveness.end_of_minute() == 0.3
    liveness.note_lag(0.1)
    assert liveness.lag_s == 0.3
    assert liveness.end_of_minute() == 0.1
    assert liveness.lag_s == 0.1
    assert liveness.end_of_minute() == 0


async def test_a_blocked_event_loop_is_measured_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals_room, "LAGGED_MS", 200)
    monkeypatch.setattr(vitals_room, "_LAG_LOOK_S", 0.05)
    liveness = Liveness("w", dict)
    with capture_logs() as lines:
        measuring = asyncio.create_task(liveness.measure_lag())
        await asyncio.sleep(0)
        time.sleep(0.4)  # noqa: ASYNC251  # as code does that forgets where it runs
        async with asyncio.timeout(5):
            while not liveness.lag_s:  # noqa: ASYNC110 - a number sends no signal
                await asyncio.sleep(0.01)
        measuring.cancel()
    assert 0.3 < liveness.lag_s < 5
    lag_ms = round(1000 * liveness.lag_s)
    (line,) = lines
    assert (line["event"], line["log_level"], line["lag_ms"]) == ("loop.lagged", "warning", lag_ms)


def test_a_repeated_lag_is_logged_once_and_its_end_after_a_quiet_minute() -> None:
    liveness = Liveness("w", dict)
    shown = []
    for lags_s in ([2, 3, 1.5], [2], [0.1], [0.1], [5]):
        with capture_logs() as lines:
            for lag_s in lags_s:
                liveness.note_lag(lag_s)
            liveness.end_of_minute()
        shown.append([(line["event"], line["times"]) for line in lines])
    assert shown == [[("loop.lagged", 1)], [], [("loop.recovered", 4)], [], [("loop.lagged", 1)]]


def test_a_lag_that_costs_no_lease_is_not_logged() -> None:
    with capture_logs() as lines:
        Liveness("w", dict).note_lag(0.9)
    assert lines == []


def test_a_wrong_clock_is_logged_once_and_again_after_it_was_right() -> None:
    liveness = Liveness("w", dict)
    skews = []
    with capture_logs() as lines:
        for here_ms in (1_059_999, 1_060_000, 1_300_000, 1_000_000, 940_001, 940_000, 0):
            liveness.note_clock(here_ms, 1_000_000)
            skews.append(liveness.skew_ms)
    assert skews == [59_999, 60_000, 300_000, 0, -59_999, -60_000, -1_000_000]
    assert [(line["event"], line["log_level"], line["skew_ms"]) for line in lines] == [
        ("clock.skewed", "warning", 60_000),
        ("clock.recovered", "info", 0),
        ("clock.skewed", "warning", -60_000),
    ]


def test_the_memory_of_a_process_is_some_megabytes() -> None:
    assert 10 < rss_mb() < 10_000


def test_where_current_memory_is_unknown_the_peak_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_file(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_such_file)
    assert rss_mb() > 0
