"""What one worker makes of the breakers that all share: what it lets out, and what it asks Redis for."""

from functools import partial
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tests.support.builders import a_subscription
from watcher.delivery.breakers import LONGEST_REST_MS, SubscriptionBreakers
from watcher.delivery.sink import Attempt, Verdict, judge
from watcher.engine.breaker import Answer, failed
from watcher.store.exceptions import StoreUnreachable
from watcher.store.queues import Breaker, Change, Decide

OPS = a_subscription("ops")
NOW_MS = 6000


class Shared:
    """One breaker, as Redis would keep it; counts the changes."""

    def __init__(self) -> None:
        self.breaker: Breaker | None = None
        self.now_ms = NOW_MS
        self.changes = 0
        self.reads = 0
        self.trouble: Exception | None = None
        self.probes: list[str] = []

    async def change(self, _name: str, decide: Decide) -> Change:
        self.changes += 1
        before, self.breaker = self.breaker, decide(self.breaker, self.now_ms)
        return Change(before, self.breaker)

    async def read(self) -> dict[str, Breaker]:
        self.reads += 1
        if self.trouble:
            raise self.trouble
        return {"ops": self.breaker} if self.breaker else {}

    async def take_probe(self, name: str, _worker: str, *, lease_ms: int) -> bool:
        self.probes.append(name)
        return len(self.probes) == 1

    async def leave_probe(self, name: str, _worker: str) -> None:
        self.probes.remove(name)


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
def breakers(shared: Shared) -> SubscriptionBreakers:
    return SubscriptionBreakers(
        cast(Any, shared), now_ms=lambda: shared.now_ms, alert=cast(Any, None), most=100
    )


def said(answer: Answer) -> Verdict:
    return judge(Attempt(answer, 1, status=500), 0, OPS.retries, chance=0)


async def earning(breakers: SubscriptionBreakers, *answers: Answer) -> int:
    for answer in answers:
        await breakers.note(OPS, said(answer))
    return breakers.room(OPS, 0, 0)


async def test_a_delivery_to_a_healthy_subscription_asks_redis_for_nothing(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    assert await earning(breakers, *[Answer.DELIVERED] * 7) == 8
    assert await breakers.may_ask("ops", lease_ms=1)
    assert (shared.changes, shared.probes) == (0, [])


async def test_one_that_opened_backs_off_and_then_starts_with_one_probe(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    assert await earning(breakers, *[Answer.DELIVERED] * 40) == 32
    assert await earning(breakers, Answer.SLOW_DOWN) == 1
    assert breakers.rest_ms("ops") == 1000
    shared.now_ms += 1000
    assert breakers.rest_ms("ops") == 0
    assert await breakers.may_ask("ops", lease_ms=1)
    assert not await breakers.may_ask("ops", lease_ms=1), "another one is out"
    await breakers.leave_probe("ops")
    assert await earning(breakers, Answer.DELIVERED) == 2
    assert shared.breaker is None


async def test_a_single_rejection_costs_no_room(breakers: SubscriptionBreakers) -> None:
    assert await earning(breakers, Answer.DELIVERED, Answer.DELIVERED, Answer.REJECTED) == 3


async def test_a_paused_one_is_looked_at_again_after_a_minute(
    shared: Shared, breakers: SubscriptionBreakers
) -> None:
    shared.breaker = Breaker(1, 1, 0, 1, "by hand")
    await breakers.refresh()
    assert breakers.rest_ms("ops") == LONGEST_REST_MS


async def test_a_turn_that_is_far_off_is_waited_for_like_a_breaker(breakers: SubscriptionBreakers) -> None:
    breakers.rest("ops", 2500)
    assert breakers.rest_ms("ops") == 2500


async def test_what_other_workers_note_is_learned_and_what_is_better_is_named(
    shared: Shared, breakers: SubscriptionBreakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.delivery.breakers._READ_EVERY_S", 0.0)
    await shared.change("ops", partial(failed, failure=said(Answer.SLOW_DOWN).failure))
    assert await breakers.refresh() == []
    assert breakers.rest_ms("ops") == 1000
    shared.breaker = None
    assert await breakers.refresh() == ["ops"]
    assert breakers.rest_ms("ops") == 0


async def test_while_redis_is_away_breakers_stand_as_they_did(
    shared: Shared, breakers: SubscriptionBreakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.delivery.breakers._READ_EVERY_S", 0.0)
    await shared.change("ops", partial(failed, failure=said(Answer.SLOW_DOWN).failure))
    await breakers.refresh()
    shared.trouble = StoreUnreachable("Redis is away")
    assert await breakers.refresh() == []
    assert breakers.rest_ms("ops") == 1000


async def test_breakers_that_are_damaged_are_closed_and_a_bug_once(
    shared: Shared, breakers: SubscriptionBreakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.delivery.breakers._READ_EVERY_S", 0.0)
    await shared.change("ops", partial(failed, failure=said(Answer.SLOW_DOWN).failure))
    await breakers.refresh()
    shared.trouble = ValueError("WRONGTYPE")
    with capture_logs() as lines:
        assert await breakers.refresh() == ["ops"]
        assert await breakers.refresh() == []
    assert [line["affected"] for line in lines if line["event"] == "bug"] == ["breakers"]
    assert breakers.rest_ms("ops") == 0
    assert shared.reads == 2, "not again so soon"


async def test_a_pause_is_reported_by_the_attempt_that_made_it_and_by_none_that_fails_with_it(
    shared: Shared,
) -> None:
    alerts: list[str] = []

    async def alert(name: str, _: Breaker) -> None:
        alerts.append(name)

    breakers = SubscriptionBreakers(cast(Any, shared), now_ms=lambda: shared.now_ms, alert=alert, most=100)
    with capture_logs() as lines:
        for _ in range(3):
            await breakers.note(OPS, said(Answer.GONE))
    assert alerts == ["ops"]
    assert [line["event"] for line in lines] == ["subscription.paused"]
