"""What a reload does not change keeps its connections, its caches and its work in hand."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.builders import SECRET
from tests.support.rig import ALICE, MK, TREASURY, Rig, a_rig
from watcher.delivery.webhook import WebhookSink
from watcher.providers.http import ProviderClient
from watcher.run.members import Enrolment
from watcher.run.worker import Worker
from watcher.settings import Settings, SubscriptionSettings, ThresholdSettings

LRC = "1"
TREASURY_NAME = "treasury"


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as found:
        yield found


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts clients and sinks that are opened and closed, and answers that are read."""
    counted: Counter[str] = Counter()

    def count(owner: type, method: str, what: str) -> None:
        real = getattr(owner, method)

        async def counting(self: Any, *arguments: Any, **named: Any) -> Any:
            counted[what] += 1
            return await real(self, *arguments, **named)

        monkeypatch.setattr(owner, method, counting)

    for owner, name in ((ProviderClient, "client"), (WebhookSink, "sink")):
        count(owner, "__aenter__", f"{name} opened")
        count(owner, "__aexit__", f"{name} closed")
    count(ProviderClient, "read", "answer read")
    return counted


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - the worker only counts
            await asyncio.sleep(0.005)


async def settled(worker: Worker, rig: Rig, seen: Counter[str]) -> None:
    """Wait until each account was polled a few times more, and nothing new is read of its answers."""
    reads = -1
    while reads != seen["answer read"]:
        reads, polls = seen["answer read"], worker.counters.polls
        await until(lambda polls=polls: worker.counters.polls >= polls + 10)  # type: ignore[misc]


async def reloaded(worker: Worker, settings: Settings) -> None:
    worker.reload(settings)
    await until(lambda: not worker.is_reloading)


def with_subscription(settings: Settings, name: str, **options: Any) -> Settings:
    one = settings.subscription_by_name["ops"].model_copy(update={"name": name, **options})
    return settings.model_copy(update={"subscription_by_name": {**settings.subscription_by_name, name: one}})


async def test_accounts_missing_from_half_a_file_go_on_once_the_whole_file_is_back(rig: Rig) -> None:
    whole = rig.settings
    half = whole.model_copy(update={"account_by_name": {"alice": whole.account_by_name["alice"]}})
    with capture_logs() as lines:
        async with rig.worker() as worker:
            await until(lambda: worker.counters.changes == 2)  # both baselines
            await reloaded(worker, half)
            polls = worker.counters.by_request["loopring"]
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            rig.sandbox.world.credit(ALICE, MK, "1")
            assert [event["data"]["account"]["name"] for event in await rig.events(1)] == ["alice"]
            assert worker.counters.by_request["loopring"] == polls
            await reloaded(worker, whole)
            assert [event["data"]["amount"] for event in (await rig.events(2))[1:]] == ["1"]
    said = [line["event"] for line in lines]
    assert said.count("account.baseline") == 2
    (removed,) = (line for line in lines if line["event"] == "accounts.removed")
    assert (removed["log_level"], removed["accounts"], removed["names"]) == ("warning", 1, [TREASURY_NAME])


async def test_a_new_account_is_polled_at_once_however_long_its_enrolment_takes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Enrolment.begin

    async def begin_slowly(self: Enrolment) -> bool:
        is_first = await begin(self)
        await asyncio.sleep(0.3)
        return is_first

    treasury = rig.settings.account_by_name[TREASURY_NAME]
    more = treasury.model_copy(update={"name": "another"})
    settings = rig.settings.model_copy(
        update={"account_by_name": {**rig.settings.account_by_name, "another": more}}
    )
    async with rig.worker() as worker:
        await until(lambda: worker.counters.polls > 2)
        with capture_logs() as lines:
            monkeypatch.setattr(Enrolment, "begin", begin_slowly)
            await reloaded(worker, settings)
            async with asyncio.timeout(3):
                while not any(line.get("account") == "another" for line in lines):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_a_new_subscription_reopens_nothing_and_no_answer_is_read_again(
    rig: Rig, seen: Counter[str]
) -> None:
    async with rig.worker() as worker:
        await settled(worker, rig, seen)
        before = seen.copy()
        await reloaded(worker, with_subscription(rig.settings, "others"))
        polls = worker.counters.polls
        await until(lambda: worker.counters.polls >= polls + 10)
        assert seen == before
        rig.sandbox.world.credit(TREASURY, "LRC", "1")
        delivered = worker.counters.by_attempt
        await until(lambda: delivered["ops", "delivered"] == delivered["others", "delivered"] == 1)
        assert (seen["client opened"], seen["sink opened"]) == (2, 1)


async def test_a_changed_provider_is_reopened_and_the_other_one_is_not(rig: Rig, seen: Counter[str]) -> None:
    async with rig.worker() as worker:
        await settled(worker, rig, seen)
        loopring = rig.settings.provider_by_name["loopring"].model_copy(update={"requests_per_second": 90})
        providers = {**rig.settings.provider_by_name, "loopring": loopring}
        await reloaded(worker, rig.settings.model_copy(update={"provider_by_name": providers}))
        await until(lambda: seen["client closed"] == 1)
        assert seen["client opened"] == 3
        rig.sandbox.world.credit(TREASURY, "LRC", "1")
        assert (await rig.events(1))[0]["data"]["amount"] == "1"
    assert seen["client closed"] == seen["client opened"]


async def test_polls_that_wait_for_a_replaced_provider_are_made_by_the_new_one(
    rig: Rig, seen: Counter[str]
) -> None:
    def at_a_pace(per_second: int) -> Settings:
        providers = {
            name: one.model_copy(update={"requests_per_second": per_second})
            for name, one in rig.settings.provider_by_name.items()
        }
        return rig.settings.model_copy(update={"provider_by_name": providers})

    with capture_logs() as lines:
        async with rig.worker(at_a_pace(20)) as worker:
            await until(lambda: worker.counters.polls >= 4)
            for number in range(30):
                await reloaded(worker, at_a_pace(20 + number % 2))
                await asyncio.sleep(0.01)
            polls = worker.counters.polls
            await until(lambda: worker.counters.polls >= polls + 10)
    assert not [line for line in lines if line["event"] == "bug"]
    assert seen["client closed"] == seen["client opened"]


async def test_a_changed_egress_policy_closes_every_connection(rig: Rig, seen: Counter[str]) -> None:
    async with rig.worker() as worker:
        await settled(worker, rig, seen)
        egress = rig.settings.egress
        wider = egress.model_copy(update={"allow": (*egress.allow, ip_network("10.1.0.0/16"))})
        await reloaded(worker, rig.settings.model_copy(update={"egress": wider}))
        assert (seen["sink opened"], seen["sink closed"]) == (2, 1)
        rig.sandbox.world.credit(TREASURY, "LRC", "1")
        await rig.events(1)
    assert seen["sink closed"] == 2


async def test_a_new_threshold_is_evaluated_though_the_answer_is_the_same(
    rig: Rig, seen: Counter[str]
) -> None:
    async with rig.worker() as worker:
        await settled(worker, rig, seen)
        reads = seen["answer read"]
        threshold = ThresholdSettings(asset=LRC, field="total", below="1000000")
        await reloaded(
            worker,
            with_subscription(rig.settings, "watch", accounts=("treasury",), thresholds=(threshold,)),
        )
        await until(lambda: seen["answer read"] > reads)
        await settled(worker, rig, seen)
        assert seen["answer read"] == reads + 1, "of the other account nothing is read again"


async def test_a_removed_account_is_polled_no_more_and_the_others_go_on(rig: Rig, seen: Counter[str]) -> None:
    async with rig.worker() as worker:
        await settled(worker, rig, seen)
        left = {"alice": rig.settings.account_by_name["alice"]}
        await reloaded(worker, rig.settings.model_copy(update={"account_by_name": left}))
        rig.sandbox.world.credit(TREASURY, "LRC", "1")
        rig.sandbox.world.credit("alice@example.com", MK, "1")
        (event,) = await rig.events(1)
        polls = worker.counters.polls
        await until(lambda: worker.counters.polls >= polls + 5)
        assert event["data"]["account"]["name"] == "alice"
        assert len(rig.receiver.events) == 1
        rig.is_damaged = True  # the account that is gone has no state to be audited by


async def test_an_attempt_in_flight_is_finished_though_the_secret_changes_meanwhile(
    rig: Rig, seen: Counter[str]
) -> None:
    later = "whsec_" + "b3RoZXIg" * 4
    async with rig.worker() as worker:
        await settled(worker, rig, seen)
        rig.sandbox.world.credit(TREASURY, "LRC", "1")
        both = (SecretStr(SECRET), SecretStr(later))
        ops: SubscriptionSettings = rig.settings.subscription_by_name["ops"]
        changed = ops.model_copy(update={"secrets": both})
        await reloaded(worker, rig.settings.model_copy(update={"subscription_by_name": {"ops": changed}}))
        await rig.events(1)
        assert seen["sink opened"] == 1


async def test_nothing_is_kept_of_removed_names(rig: Rig) -> None:
    async with rig.worker() as worker:
        await until(lambda: worker.counters.polls > 2)
        for turn in range(5):
            await reloaded(worker, with_subscription(rig.settings, f"passing-{turn}"))
            rig.sandbox.world.credit(TREASURY, "LRC", "1")
            await until(lambda count=2 * turn + 2: worker.counters.deliveries >= count)  # type: ignore[misc]
        for _ in range(2):  # what was in hand at the first
            await reloaded(worker, rig.settings.model_copy())
        loop = worker.loop
        assert loop
        assert {key.name for key in loop.dispatch.keys} <= {"ops", "loopring", "shop"}
