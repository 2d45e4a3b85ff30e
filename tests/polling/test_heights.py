"""Nodes of one provider answer from different heights: an answer below the accepted height is discarded."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.polling.test_poll import Polled, poll_lines
from tests.support.builders import a_subscription
from tests.support.provider_staging import (
    TOKENS_PATH,
    Stage,
    a_balance,
    a_token_list,
    answer,
    declared_settings,
)
from tests.support.stores import ACCOUNT, OPS, PROVIDER, a_store
from watcher.journal.step import reset
from watcher.providers.contract import LAG
from watcher.providers.declared import HttpAccount
from watcher.snapshot import Balance
from watcher.store.polls import Commit


class Node(Polled):
    """A worker's polls of one account, each read at a height."""

    async def at(self, height: int | None, total: str) -> list[Any]:
        """Poll once, answered by this total at this height; returns what was logged."""
        reads = type(self.client).read

        async def read(*arguments: Any, **options: Any) -> Any:
            return (await reads(self.client, *arguments, **options))._replace(height=height)

        self.client.read = read  # type: ignore[method-assign]  # the simulated provider has no heights
        return await self.poll({**a_balance(0, total), "accountId": self.account.account_id, "at": height})  # type: ignore[attr-defined]

    async def seen(self) -> tuple[str, int | None]:
        """The total that was accepted last, and at which height."""
        state = await self.state()
        return state.entry_by_asset["0"].seen.total, state.height

    async def stored(self) -> bytes:
        """The state as it lies in Redis, without what a touch replaces."""
        text: bytes = await self.store.pipe.command("GET", self.store.keys.state(ACCOUNT))
        return text[:17] + text[52:]


@pytest.fixture
async def node(redis_client: Redis, namespace: str) -> AsyncIterator[Node]:
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    async with Stage() as stage:
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 1))
        node = Node(store, stage)
        async with node.client:
            yield node


async def test_a_reading_at_a_lower_height_is_discarded_and_repeated_soon(node: Node) -> None:
    await node.at(1000, "10")
    await node.at(1002, "12")
    before = await node.state()
    (line,) = poll_lines(await node.at(1001, "10"))
    assert (line["event"], line["error_class"]) == ("poll.rejected", "transient")
    assert line["reason"] == "read at height 1001, where the last one was read at 1002"
    assert await node.state() == before
    assert await node.waits_ms() <= 5_000
    await node.at(1001, "12")
    assert await node.state() == before, "whatever it says"
    await node.at(1003, "12")
    assert await node.seen() == ("12", 1003)


async def test_an_equal_height_is_accepted_also_with_another_balance(node: Node) -> None:
    await node.at(1000, "10")
    await node.at(1000, "11")
    assert await node.seen() == ("11", 1000)


async def test_a_height_that_rises_alone_is_noted_without_a_commit(node: Node) -> None:
    await node.at(1000, "10")
    before, version = await node.stored(), (await node.state()).version
    for height in (1001, 1005):
        (line,) = poll_lines(await node.at(height, "10"))
        assert (line["event"], line["unchanged"]) == ("poll.finished", True)
        assert await node.seen() == ("10", height)
    assert await node.stored() == before
    assert (await node.state()).version == version


async def test_the_same_bytes_again_are_accepted_whatever_another_worker_has_seen(node: Node) -> None:
    await node.at(1000, "10")
    other = Node(node.store, node.stage)
    async with other.client:
        await other.at(1009, "10")
    reads = node.client.reads
    (line,) = poll_lines(await node.at(1000, "10"))
    assert (line["event"], node.client.reads) == ("poll.finished", reads), "they were not even read"
    assert await node.seen() == ("10", 1009)


async def test_a_worker_judges_by_the_height_that_another_one_noted(node: Node) -> None:
    """Whether the balance moved, or nothing but the height."""
    other = Node(node.store, node.stage)
    async with other.client:
        for seen, said, total in ((1009, 1005, "10"), (1019, 1015, "11")):
            await node.at(seen - 9, "10")
            await other.at(seen, "10")
            (line,) = poll_lines(await node.at(said, total))
            assert line["reason"] == f"read at height {said}, where the last one was read at {seen}"
            assert await node.seen() == ("10", seen)


async def test_a_state_without_a_height_takes_the_first_one_and_keeps_it(node: Node) -> None:
    await node.at(None, "10")
    assert await node.seen() == ("10", None)
    await node.at(7, "10")
    assert await node.seen() == ("10", 7)
    await node.at(None, "11")
    assert await node.seen() == ("11", 7)


async def test_a_height_far_below_is_an_error_once_that_says_what_to_do(node: Node) -> None:
    await node.at(1000, "10")
    (line,) = poll_lines(await node.at(1000 - LAG, "9"))
    assert line["error_class"] == "transient"
    lines = [one for height in (999 - LAG, 5, 6) for one in await node.at(height, "9")]
    said = [line["reason"].partition(" (")[2] for line in poll_lines(lines)]
    assert said[1:] == [f"read at height {at}, where the last one was read at 1000)" for at in (5, 6)]
    (refusing,) = [one for one in lines if one["event"] == "provider.refusing"]
    assert (refusing["log_level"], refusing["error_class"], refusing["account"]) == (
        "error",
        "configuration",
        ACCOUNT,
    )
    assert "another chain, or a node that was set back" in refusing["reason"]
    assert "`watcher accounts reset NAME` starts a new baseline" in refusing["reason"]
    failing = await node.polls.failing(PROVIDER, ACCOUNT)
    assert failing
    assert failing.error_class == "configuration"
    assert await node.seen() == ("10", 1000)
    assert await node.emitted() == []


async def test_after_a_reset_any_height_is_a_baseline_and_polls_go_on_from_there(node: Node) -> None:
    await node.at(1000, "10")
    await node.at(5, "9")
    state = await node.state()
    forgets = reset(state, "ann@host", version="anew", now_ms=node.now_ms)
    await node.polls.commit(Commit(ACCOUNT, PROVIDER, None, state.version, forgets))
    node.watch(interval_s=30)
    lines = await node.at(5, "9")
    (begun,) = [line for line in lines if line["event"] == "account.baseline"]
    assert begun["by"] == "ann@host"
    assert await node.seen() == ("9", 5)
    await node.at(6, "8")
    assert await node.emitted() == ["total.decreased"]
    assert (await node.state()).sequence > state.sequence


async def test_a_reset_during_a_poll_makes_that_poll_the_baseline(node: Node) -> None:
    """Also where the worker keeps the state, and the same bytes come again."""
    await node.at(1000, "10")
    state = await node.state()
    forgets = reset(state, "ann@host", version="anew", now_ms=node.now_ms)
    await node.store.polls.commit(Commit(ACCOUNT, PROVIDER, None, state.version, forgets))  # another process
    lines = await node.at(1000, "10")
    assert {line.get("event_type") for line in lines} == {None, "account.baseline"}
    assert [line["by"] for line in lines if line["event"] == "account.baseline"] == ["ann@host"]
    assert await node.seen() == ("10", 1000)


async def test_a_new_source_may_be_at_any_height(node: Node) -> None:
    await node.at(1000, "10")
    node.account = node.account.model_copy(update={"account_id": 4711})
    await node.at(3, "9")
    assert await node.seen() == ("9", 3)


async def test_a_declared_account_may_be_overdrawn_have_one_signed_pending_and_a_height(
    redis_client: Redis, namespace: str
) -> None:
    """What no listed provider has, from the bytes of an answer to the events that wait."""
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    async with Stage() as stage:
        part = {"id": "USD", "total": "held", "pending": "pending", "height": "at"}
        settings = declared_settings(stage.url, name=PROVIDER, ask=[{"path": "/"}], read=[part])
        account = HttpAccount(name=ACCOUNT, provider=PROVIDER, of={})
        polled = Polled(store, stage, settings, account)
        polled.interest.follow({OPS: a_subscription(OPS)})
        async with polled.client:
            polls = [("5", "0", 7), ("-3.5", "2", 8), ("-3.5", "0", 7), ("-1.5", "0", 9), ("-2.5", "-1", 9)]
            for held, pending, at in polls:
                stage.reply = answer({"held": held, "pending": pending, "at": at})
                await polled.poll()
    assert await polled.emitted() == [
        "deposit.pending",
        "total.decreased",
        "deposit.cleared",
        "withdrawal.pending",
    ]
    state = await polled.state()
    assert (state.entry_by_asset["USD"].seen, state.height) == (Balance("-2.5", "0", "0", "1"), 9)
