"""An attack by a subscription's own token: by every endpoint there is, every filter, cursor and id."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from typing import Any

import pytest

from tests.support.api import OPERATORS, Api, Said, an_api_of
from tests.support.directory import Programs, with_key
from tests.support.rig import ALICE, MK, TREASURY, Rig, a_rig
from watcher.api import access
from watcher.api.access import OPEN_TO_ITS_SUBSCRIPTION
from watcher.run.worker import Worker
from watcher.store.directory import Directory
from watcher.store.keys import Keys

OWN, RIVALS = "wst_the-token-of-mine", "wst_the-token-of-the-rival"
CANARIES = ("alice", "rival", MK, "ETH", "hooks.example")
"""What `mine`, which wants LRC of treasury alone, has no business to see."""


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


@pytest.fixture(autouse=True)
def _as_often_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PER_SECOND", 10_000)


async def until(claim: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not claim():  # noqa: ASYNC110 - what is waited for has no signal
            await asyncio.sleep(0.005)


async def some_history(rig: Rig, worker: Worker, api: Api) -> None:
    """Two subscriptions made by programs, and events of each that the other must not see."""
    await until(lambda: worker.counters.by_poll["loopring", "committed"])
    await until(lambda: worker.counters.by_poll["shop", "committed"])
    assert worker.opened
    pipe, namespace = worker.opened.schedule.pipe, rig.settings.redis.namespace
    programs = Programs(Directory(pipe, Keys(namespace)), namespace)
    for name, token, wants in (
        ("mine", OWN, {"accounts": ["treasury"], "assets": ["LRC"]}),
        ("rival", RIVALS, {"accounts": ["alice", "treasury"], "assets": [MK, "ETH"]}),
    ):
        tokens = {sha256(token.encode()).hexdigest(): None}
        await programs.put_subscription(name, f"https://hooks.example.com/{name}", tokens=tokens, **wants)
    assert worker.followed
    await worker.followed.follow_now()
    for number in range(1, 4):
        rig.sandbox.world.credit(TREASURY, "LRC", number)
        rig.sandbox.world.credit(TREASURY, "ETH", number)
        rig.sandbox.world.credit(ALICE, MK, number)
        await until(lambda: worker.counters.changes >= 2 + 3 * number)  # noqa: B023


async def endpoints(api: Api) -> list[tuple[str, str]]:
    """Every method of every path that the operator is shown."""
    listed = (await api.get("/")).data
    return [(method, path) for path, methods in listed.items() for method in methods]


def leaks(seen: Said) -> list[str]:
    return [canary for canary in CANARIES if canary in json.dumps(seen.data) + str(seen.headers)]


async def test_a_subscriptions_token_opens_two_endpoints_of_its_own_and_nothing_else(rig: Rig) -> None:
    async with rig.worker(with_key(rig.settings)) as worker, an_api_of(worker) as api:
        await some_history(rig, worker, api)
        found = [*await endpoints(api), ("GET", "/v1/nothing"), ("POST", "/v1/subscriptions/{name}/events")]
        opened, refusals = set(), set()
        for method, path in found:
            for name in ("mine", "rival", "ops", "nobody", "treasury", "mine%2F..%2Frival", "Mine", "*"):
                where = path.removeprefix("/v1").replace("{name}", name)
                seen = await api.ask(method, where, OWN, json={"url": "https://hooks.example.com/mine"})
                if seen.status == 403:
                    refusals.add(json.dumps(seen.data))
                else:
                    opened.add((method, path, name))
                assert leaks(seen) == [], (method, where)
    assert len(found) > len(OPEN_TO_ITS_SUBSCRIPTION) + 5
    assert opened == {(method, path, "mine") for method, path in OPEN_TO_ITS_SUBSCRIPTION}
    assert len(refusals) == 1, "whatever there is"


async def test_no_filter_cursor_or_sequence_shows_what_it_does_not_get(rig: Rig) -> None:
    async with rig.worker(with_key(rig.settings)) as worker, an_api_of(worker) as api:
        await some_history(rig, worker, api)
        foreign = [
            (await api.get("/events", limit=1)).data["next"],
            (await api.get("/events", account="alice", limit=1)).data["next"],
            (await api.get("/subscriptions/rival/events", RIVALS, limit=1)).data["next"],
            (await api.get("/subscriptions/rival/balances", RIVALS, limit=1)).data["next"] or "",
            (await api.get("/accounts", limit=1)).data["next"],
        ]
        sequences = [
            json.loads(json.dumps(item))["data"]["sequence"]
            for item in (await api.get("/events", account="alice")).data["items"]
        ]
        tries: list[dict[str, Any]] = [{}, {"limit": 1000}]
        tries += [{"after": cursor} for cursor in foreign]
        tries += [{"account": account} for account in ("alice", "*", "nobody", "treasury", "a*")]
        tries += [{"account": "alice", "after": sequence} for sequence in (0, *sequences)]
        tries += [{"type": wanted} for wanted in ("*", "total.increased", "account.*", "subscription.ping")]
        tries += [{"subscription": name} for name in ("rival", "mine")]
        answers = {
            (path, str(query)): await api.get(f"/subscriptions/mine/{path}", OWN, **query)
            for path in ("events", "balances")
            for query in tries
        }
        account = [
            await api.get("/subscriptions/mine/events", OWN, account=name) for name in ("alice", "nobody")
        ]
    for asked, seen in answers.items():
        assert seen.status in (200, 400, 404, 410), asked
        said = json.dumps(seen.data).replace("alice", "", 1) if seen.status == 404 else json.dumps(seen.data)
        assert [canary for canary in CANARIES if canary in said] == [], asked
    own = answers["events", str({})].data["items"]
    assert {event["data"]["asset"]["symbol"] for event in own} == {"LRC"}
    assert len(own) == 3
    assert account[0].data["detail"].replace("alice", "nobody") == account[1].data["detail"]
    assert OPERATORS not in str(answers)
