"""A subscription made by the API is pinged until its URL answers, by one worker, and no host too often."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.support.builders import a_subscription
from tests.support.servers import EVERY_ENGINE
from watcher.delivery.sink import Attempt
from watcher.engine.breaker import BACKOFF_MS, Answer
from watcher.journal.events import Event
from watcher.run.verification import PATIENCE_MS, SPACING_MS, TooMany, Unverified, Verification
from watcher.settings import SubscriptionSettings
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe
from watcher.store.schedule import Schedule

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)


OK = Attempt(Answer.DELIVERED, 3, status=204)
HOST = "a.example.com"


@dataclass
class Worker:
    """A worker's part, the pings that it sent, and what their URLs answer."""

    schedule: Schedule
    keys: Keys
    later_ms: int = 0
    """By how much its clock is ahead of the server's."""
    answers: dict[str, Attempt] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    noted: list[tuple[str, str]] = field(default_factory=list)
    errors_by_name: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        server = self.schedule.now_ms
        self.schedule.now_ms = lambda: server() + self.later_ms
        self.verification = Verification(
            self.schedule, self.keys, send=self._send, note=self._note, tell=self._tell
        )

    async def _send(self, settings: SubscriptionSettings, event: Event) -> Attempt:
        assert event.type == "subscription.ping"
        self.sent.append(settings.name)
        return self.answers.get(settings.name, Attempt(Answer.FAILED, 3, status=500))

    async def _note(self, name: str, url: str) -> bool:
        self.noted.append((name, url))
        return True

    async def _tell(self, name: str, error: str) -> None:
        self.errors_by_name[name] = error

    async def sleep(self, ms: int, *hosts: str) -> None:
        """Let time pass; meanwhile other workers do nothing, and the hosts may be pinged again."""
        self.later_ms += ms
        await self.schedule.pipe.command("DEL", *(self.keys.ping_rate(host) for host in hosts))

    async def look(self, *waiting: Unverified) -> list[str]:
        """The pings of one look."""
        self.sent.clear()
        await self.verification.look(waiting)
        return sorted(self.sent)


@pytest.fixture
def workers(redis_client: Redis, namespace: str) -> Iterator[Worker]:
    """Makes one worker after another in the same namespace."""
    return (Worker(Schedule(Pipe(redis_client)), Keys(namespace)) for _ in "abc")


def waiting(name: str, host: str = HOST, since_ms: int = 0, *, version: int = 1) -> Unverified:
    settings = a_subscription(name).model_copy(update={"url": SecretStr(f"https://{host}/hooks/{name}")})
    return Unverified(settings, version, since_ms)


async def begin(workers: Iterator[Worker]) -> tuple[Worker, int]:
    one = next(workers)
    await one.schedule.read_clock()
    return one, one.schedule.now_ms()


async def test_a_url_that_answers_is_recorded_as_verified(workers: Iterator[Worker]) -> None:
    one, now_ms = await begin(workers)
    one.answers["ops"] = OK
    assert await one.look(waiting("ops", since_ms=now_ms)) == ["ops"]
    assert one.noted == [("ops", f"https://{HOST}/hooks/ops")]
    assert one.errors_by_name == {"ops": ""}


async def test_a_url_that_does_not_answer_is_pinged_at_the_breakers_intervals_for_a_day(
    workers: Iterator[Worker],
) -> None:
    one, now_ms = await begin(workers)
    new = waiting("ops", since_ms=now_ms)
    for backoff_ms in (*BACKOFF_MS, BACKOFF_MS[-1]):
        assert await one.look(new) == ["ops"]
        await one.sleep(backoff_ms - 1000, HOST)
        assert await one.look(new) == [], f"sooner than {backoff_ms} ms"
        await one.sleep(1000, HOST)
    await one.sleep(PATIENCE_MS, HOST)
    assert await one.look(new) == []
    assert (one.noted, one.errors_by_name) == ([], {"ops": "status 500"})


async def test_a_rewritten_record_is_pinged_at_once(workers: Iterator[Worker]) -> None:
    one, now_ms = await begin(workers)
    for version in (1, 2):
        assert await one.look(waiting("ops", since_ms=now_ms, version=version)) == ["ops"]
        await one.sleep(0, HOST)


async def test_a_clock_that_was_set_back_delays_no_ping(workers: Iterator[Worker]) -> None:
    one, now_ms = await begin(workers)
    new = waiting("ops", since_ms=now_ms)
    assert await one.look(new) == ["ops"]
    await one.sleep(-86_400_000, HOST)
    assert await one.look(new) == ["ops"]


async def test_only_one_worker_pings_a_url(workers: Iterator[Worker]) -> None:
    one, now_ms = await begin(workers)
    other, _ = await begin(workers)
    new = [waiting("ops", "a.example.com", now_ms), waiting("audit", "b.example.com", now_ms)]
    assert await one.look(*new) == ["audit", "ops"]
    assert await other.look(*new) == []
    await one.schedule.pipe.command("DEL", one.keys.verifier())  # as when it is gone for a while
    await other.sleep(0, "a.example.com", "b.example.com")
    assert await other.look(*new) == ["audit", "ops"]


async def test_a_host_is_pinged_at_most_ten_times_a_minute(workers: Iterator[Worker]) -> None:
    one, now_ms = await begin(workers)
    other, _ = await begin(workers)
    assert 60_000 / SPACING_MS == 10
    assert await one.look(waiting("ops", since_ms=now_ms), waiting("audit", since_ms=now_ms)) in (
        ["audit"],
        ["ops"],
    )
    for name in ("ops", "third"):
        with pytest.raises(TooMany) as refused:
            await other.verification.ping(waiting(name, HOST.upper()).settings)
        assert 0 < refused.value.retry_after_s <= SPACING_MS / 1000
    assert (await other.verification.ping(waiting("ops", "b.example.com").settings)).status == 500
