"""Any odd answer: the state and its time stay, nothing is emitted."""

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.polling.test_poll import Polled
from tests.providers.test_odd_answers import SOURCE_BY_NAME, Answered
from tests.support.builders import a_subscription
from tests.support.odd_answers import oddities
from tests.support.provider_staging import Stage, answer
from tests.support.stores import ACCOUNT, OPS, PROVIDER, a_store
from watcher.providers.contract import provider_class


@pytest.mark.parametrize("name", SOURCE_BY_NAME)
async def test_an_odd_answer_changes_nothing_and_the_next_valid_one_is_read(
    redis_client: Redis, namespace: str, name: str
) -> None:
    source = SOURCE_BY_NAME[name]
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    async with Stage() as stage:
        settings = source.settings(stage.url).model_copy(update={"name": PROVIDER})
        account = source.account.model_copy(update={"name": ACCOUNT, "provider": PROVIDER})
        answered = Answered(source, stage, provider_class(settings.kind)(settings))
        polled = Polled(store, stage, settings, account)
        polled.interest.follow({OPS: a_subscription(OPS, events=("*",))})
        async with polled.client:
            await polled.poll()
            last, emitted, rejected = await polled.state(), await polled.emitted(), 0
            assert last.entry_by_asset
            for number, good in enumerate(answered.good):
                for odd in oddities(good):
                    if odd.kind not in ("whole", "cut") or source.is_meant(odd):
                        continue
                    answered.with_reply(number, answer(odd.body))
                    is_read = finished(await polled.poll())
                    before, last = last, await polled.state()
                    assert last.entry_by_asset == before.entry_by_asset, odd
                    assert is_read or last == before, odd  # its time, too
                    rejected += not is_read
            assert rejected > 30
            assert await polled.emitted() == emitted
            answered.with_reply()
            assert finished(await polled.poll())


def finished(lines: list[Any]) -> bool:
    return "poll.finished" in [line["event"] for line in lines]
