"""What one worker does with the shared breakers: what it lets out, and what it asks Redis for."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tests.support.builders import a_subscription
from watcher.delivery.breakers import LONGEST_BACKOFF_MS, SubscriptionBreakers
from watcher.delivery.sink import Attempt
from watcher.engine.breaker import TURN_MS, Answer, Failure, State, counted, state
from watcher.store.exceptions import StoreUnreachable
from watcher.store.queues import Breaker, Change, Decide, Miss, Results

OPS = a_subscription("ops")
NOW_MS = 6000
BAD = Results(0, row=tuple(Miss(at, True, "a") for at in range(5)))
GOOD = Results(0, 100, 1)


class Shared:
    """One breaker, as Redis would keep it; counts the calls."""

    is_apart = False

    def __init__(self) -> None:
        self.breaker: Breaker | None = None
        self.now_ms = NOW_MS
        self.changes = 0
        self.reads = 0
        self.counts = 0
        self.results: Results = BAD
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        self.trouble: Exception | None = None
        self.probes: list[str] = []
        self.turns: list[tuple[float, int]] = []
        self.turn_ms = 0.0
        self.delivered: float | None = None
        self.is_idle_ = False

    async def change(self, _name: str, decide: Decide) -> Change:
        self.changes += 1
        before, self.breaker = self.breaker, decide(self.breaker, self.now_ms)
        return Change(before, self.breaker)

    async def read(self) -> dict[str, Breaker]:
        self.reads += 1
        if self.trouble:
            raise self.trouble
        return {"ops": self.breaker} if self.breaker else {}

    async def count_results(self, _name: str, *, closed_at_ms: int) -> Results:
        self.counts += 1
        if meanwhile := self.meanwhile:
            self.meanwhile = None
            await meanwhile()
        return self.results._replace(from_ms=closed_at_ms)

    async def is_idle(self, _name: str) -> bool:
        return self.is_idle_

    async def take_probes(self, _: str, wanted: list[str], *, at_most: int, lease_ms: int) -> list[str]:
        taken = wanted[: at_most - len(self.probes)]
        self.probes += taken
        return taken

    async def leave_probes(self, _name: str, probes: list[str]) -> None:
        for probe in probes:
            self.probes.remove(probe)

    async def take_turn(self, _: str, *, spacing_ms: float, within_ms: float, delivered: int) -> float:
        self.turns.append((spacing_ms, delivered))
        return self.turn_ms

    async def hold_turns(self, _name: str, *, for_ms: int, delivered: int) -> float | None:
        self.turns.append((-for_ms, delivered))
        return self.delivered


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
def breakers(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> SubscriptionBreakers:
    monkeypatch.setattr("watcher.delivery.breakers._READ_EVERY_S", 0.0)
    return SubscriptionBreakers(
        cast(Any, shared), now_ms=lambda: shared.now_ms, alert=cast(Any, None), most=100, workers=lambda: 3
    )


def an_attempt(answer: Answer, retry_after_s: float | None = None) -> Attempt:
    return Attempt(answer, 1, status=500, retry_after_s=retry_after_s)


async def note(
    breakers: SubscriptionBreakers, *answers: Answer, account: str = "a", retry_after_s: float | None = None
) -> int:
    """Record attempts; returns how many may start afterwards."""
    for answer in answers:
        await breakers.note(OPS, account, an_attempt(answer, retry_after_s))
    return breakers.capacity(OPS, 0, 0)


async def probe(breakers: SubscriptionBreakers, answer: Answer, account: str = "a") -> None:
    """Make one probe."""
    assert await breakers.take_probes("ops", 1, lease_ms=1) == 1
    await breakers.probe("ops", [account])
    await note(breakers, answer, account=account)
    await breakers.leave_probe("ops", account)


async def test_a_delivery_to_a_healthy_subscription_makes_no_call_to_redis(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    assert await note(breakers, *[Answer.DELIVERED] * 7) == 9
    assert await breakers.take_probes("ops", 9, lease_ms=1) == 9
    assert await breakers.turn_ms(OPS) == 0
    assert (shared.changes, shared.counts, shared.probes, shared.turns) == (0, 0, [], [])


async def test_a_failure_opens_the_breaker_if_the_count_of_all_workers_says_so(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    shared.results = GOOD
    await note(breakers, Answer.FAILED)
    assert (shared.counts, shared.changes) == (1, 0)
    shared.results = BAD
    await note(breakers, Answer.FAILED)
    assert not breakers.is_closed("ops")
    assert not breakers.may_send("ops", is_probe=True)
    assert breakers.backoff_ms("ops") == 1000
    assert breakers._openings == {"ops": 1}
    await note(breakers, Answer.FAILED)
    assert shared.counts == 2, "attempts from before it opened are not counted"


@pytest.mark.parametrize("answer", [Answer.REJECTED, Answer.SLOW_DOWN])
async def test_errors_about_one_event_and_429s_do_not_open_the_breaker(
    shared: Shared, breakers: SubscriptionBreakers, answer: Answer
) -> None:
    await note(breakers, *[answer] * 30)
    assert shared.counts == 0
    assert breakers.is_closed("ops")


async def test_failures_during_a_count_are_in_the_next_one(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    shared.results = GOOD
    shared.meanwhile = lambda: note(breakers, *[Answer.FAILED] * 30)
    await note(breakers, Answer.FAILED)
    assert shared.counts == 2


async def test_on_a_cluster_failures_are_counted_at_the_next_refresh(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    shared.is_apart = True
    await note(breakers, *[Answer.FAILED] * 30)
    assert shared.counts == 0
    await breakers.refresh()
    assert shared.counts == 1
    assert breakers.backoff_ms("ops") == 1000


async def test_an_open_breaker_lets_probes_out_which_close_it(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    assert await note(breakers, *[Answer.DELIVERED] * 40) == 32
    with capture_logs() as lines:
        await note(breakers, Answer.FAILED)
        shared.now_ms += 1000
        assert breakers.may_send("ops", is_probe=True)
        assert not breakers.may_send("ops", is_probe=False)
        assert breakers.capacity(OPS, 0, 0) == 1
        assert await breakers.take_probes("ops", 1, lease_ms=1) == 1
        await breakers.probe("ops", ["a"])
        assert breakers.is_probe("ops", "a")
        assert not breakers.is_probe("ops", "b")
        assert await breakers.take_probes("ops", 1, lease_ms=1) == 0, "another probe is out"
        await breakers.leave_probe("ops", "a")
        for _ in range(3):
            await probe(breakers, Answer.DELIVERED)
    assert breakers.is_closed("ops")
    assert breakers.capacity(OPS, 0, 0) == 32, "its concurrency is kept"
    assert shared.probes == []
    assert [line["event"] for line in lines] == ["subscription.failing", "subscription.recovered"]


async def test_probes_without_a_queue_are_given_back(shared: Shared, breakers: SubscriptionBreakers) -> None:
    shared.breaker = Breaker(since_ms=1, allowed=4)
    await breakers.refresh()
    assert await breakers.take_probes("ops", 3, lease_ms=1) == 3
    await breakers.probe("ops", ["a"])
    assert len(shared.probes) == 1
    await breakers.leave_probe("ops", "a")
    assert shared.probes == []


async def test_only_an_opening_and_waits_of_more_than_5_s_are_logged(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    with capture_logs() as lines:
        await note(breakers, Answer.OVERLOADED)
        for _ in range(5):
            shared.now_ms += breakers.backoff_ms("ops")
            await probe(breakers, Answer.OVERLOADED)
    assert [line["next_ms"] for line in lines] == [1000, 10_000, 30_000, 60_000]
    assert {line["reason"] for line in lines} == {"status 500"}


async def test_a_half_open_breaker_without_a_backlog_is_closed(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    await note(breakers, Answer.OVERLOADED)
    shared.is_idle_ = True
    await breakers.refresh()
    assert not breakers.is_closed("ops"), "it is open"
    shared.now_ms += 1000
    with capture_logs() as lines:
        assert await breakers.refresh() == ["ops"]
    assert breakers.is_closed("ops")
    assert [line["event"] for line in lines] == ["subscription.recovered"]
    shared.now_ms += 10_001
    await breakers.refresh()
    assert shared.breaker is None, "nothing of it is stored"


@pytest.mark.parametrize("fate", ["resumed by hand", "closed by another worker"])
async def test_a_worker_logs_a_resume_by_hand_and_not_that_another_worker_closed_a_breaker(
    shared: Shared, breakers: SubscriptionBreakers, fate: str
) -> None:
    await note(breakers, Answer.OVERLOADED)
    await breakers.refresh()
    assert not breakers.is_closed("ops"), "it is open"
    shared.breaker = None if fate == "resumed by hand" else Breaker(closed_at_ms=shared.now_ms)
    with capture_logs() as lines:
        assert await breakers.refresh() == ["ops"]
        assert await breakers.refresh() == []
    assert [line["event"] for line in lines] == ["subscription.resumed"] * (fate == "resumed by hand")


async def test_only_overload_halves_the_concurrency(breakers: SubscriptionBreakers) -> None:
    assert await note(breakers, *[Answer.DELIVERED] * 40) == 32
    assert await note(breakers, Answer.REJECTED) == 32
    await breakers.note(OPS, "a", an_attempt(Answer.OVERLOADED))
    assert breakers._concurrency._allowed["ops"] == 16


async def test_a_429_holds_the_subscription_and_turns_keep_its_rate(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    shared.delivered = 100.0
    await note(breakers, *[Answer.DELIVERED] * 40)
    with capture_logs() as lines:
        await note(breakers, *[Answer.SLOW_DOWN] * 3, retry_after_s=2)
    assert breakers.backoff_ms("ops") == 2000
    assert breakers.is_closed("ops")
    assert [(line["event"], line["per_second"], line["next_ms"]) for line in lines] == [
        ("subscription.rate_limited", 80 * 1.2, 2000)
    ], "three workers that deliver 40 a second each"
    assert shared.turns == [(-2000, 0)] * 3
    shared.now_ms += 2000
    await note(breakers, Answer.DELIVERED, Answer.DELIVERED)
    shared.turn_ms = TURN_MS
    assert await breakers.turn_ms(OPS) == TURN_MS
    assert [round(shared.turns[-1][0], 1), shared.turns[-1][1]] == [10.4, 2]
    assert await breakers.turn_ms(OPS) == TURN_MS
    assert shared.turns[-1][1] == 0, "deliveries are counted once"
    assert breakers.capacity(OPS, 0, 0) == 24, "as many as have a turn soon"


async def test_a_429_lowers_the_rate_to_what_all_workers_delivered(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    shared.breaker = Breaker(pace_per_s=50.0, pace_at_ms=NOW_MS - 1500)
    shared.delivered = 40.0
    await breakers.refresh()
    await note(breakers, *[Answer.DELIVERED] * 40)
    await note(breakers, Answer.SLOW_DOWN)
    assert shared.breaker.pace_per_s == 32


@pytest.mark.parametrize(
    ("wish", "per_second"),
    [
        ({}, 0.8),
        ({"requests_per_second": 20}, 16),
        ({"requests_per_second": 90}, 0.8 * 32),
        ({"format": "slack"}, 0.8),
    ],
)
async def test_after_a_first_429_the_rate_begins_with_the_configured_one(
    shared: Shared, breakers: SubscriptionBreakers, wish: dict[str, Any], per_second: float
) -> None:
    await breakers.note(a_subscription("ops", **wish), "a", an_attempt(Answer.SLOW_DOWN))
    assert shared.breaker
    assert shared.breaker.pace_per_s == pytest.approx(per_second)


async def test_a_distant_turn_is_waited_for_like_an_open_breaker(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    shared.turn_ms = 2500
    limited = a_subscription("ops", requests_per_second=0.4)
    assert await breakers.turn_ms(limited) is None
    assert breakers.backoff_ms("ops") == 2500 - TURN_MS / 2
    assert breakers.may_send("ops", is_probe=False), "a queue that has its turn goes on"


async def test_of_two_rates_the_slower_one_is_kept(shared: Shared, breakers: SubscriptionBreakers) -> None:
    shared.breaker = Breaker(pace_per_s=10.0, pace_at_ms=NOW_MS)
    await breakers.refresh()
    for per_second, spacing_ms in ((5, 200), (20, 100)):
        await breakers.turn_ms(a_subscription("ops", requests_per_second=per_second))
        assert shared.turns[-1][0] == spacing_ms


async def test_a_paused_subscription_is_looked_at_again_after_a_minute(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    shared.breaker = Breaker(paused_at_ms=1, reason="by hand")
    await breakers.refresh()
    assert breakers.backoff_ms("ops") == LONGEST_BACKOFF_MS


async def test_a_refresh_learns_breakers_of_other_workers_and_names_those_that_improved(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    await shared.change("ops", partial(counted, results=BAD, failure=Failure("status 503")))
    assert await breakers.refresh() == []
    assert breakers.backoff_ms("ops") == 1000
    shared.breaker = None
    assert await breakers.refresh() == ["ops"]
    assert breakers.backoff_ms("ops") == 0


async def test_while_redis_is_unreachable_breakers_keep_their_state(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    await shared.change("ops", partial(counted, results=BAD, failure=Failure("status 503")))
    await breakers.refresh()
    shared.trouble = StoreUnreachable("Redis is away")
    assert await breakers.refresh() == []
    assert breakers.backoff_ms("ops") == 1000


async def test_a_failed_refresh_undoes_nothing_noted_meanwhile(
    shared: Shared, breakers: SubscriptionBreakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read() -> dict[str, Breaker]:
        await note(breakers, Answer.OVERLOADED)
        raise StoreUnreachable("Redis is away")

    monkeypatch.setattr(shared, "read", read)
    assert await breakers.refresh() == []
    assert breakers.backoff_ms("ops") == 1000


async def test_damaged_breakers_are_closed_and_logged_as_a_bug_once(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    await shared.change("ops", partial(counted, results=BAD, failure=Failure("status 503")))
    await breakers.refresh()
    shared.trouble = ValueError("WRONGTYPE")
    with capture_logs() as lines:
        assert await breakers.refresh() == ["ops"]
        assert await breakers.refresh() == []
    assert [line["affected"] for line in lines if line["event"] == "bug"] == ["breakers"]
    assert breakers.backoff_ms("ops") == 0
    assert shared.reads == 2, "not again so soon"


async def test_of_attempts_that_fail_together_one_reports_the_pause(
    shared: Shared,
) -> None:
    alerts: list[str] = []

    async def alert(name: str, _: Breaker) -> None:
        alerts.append(name)

    breakers = SubscriptionBreakers(cast(Any, shared), now_ms=lambda: shared.now_ms, alert=alert, most=100)
    with capture_logs() as lines:
        await note(breakers, *[Answer.GONE] * 3)
    assert alerts == ["ops"]
    assert [line["event"] for line in lines] == ["subscription.paused"]
    assert state(shared.breaker, NOW_MS) is State.PAUSED
