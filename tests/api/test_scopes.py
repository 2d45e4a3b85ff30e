"""An attack by a subscription's own token: on every endpoint, with every filter, cursor and id."""

import asyncio
import json
import random
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from typing import Any

import pytest

from tests.support.api import OPERATORS, Api, Said, an_api_of
from tests.support.directory import Programs, with_key
from tests.support.rig import ALICE, MK, TREASURY, Rig, a_rig
from watcher.api import access
from watcher.api.access import OPEN_TO_ITS_SUBSCRIPTION
from watcher.api.problems import cursor
from watcher.run.worker import Worker
from watcher.store.directory import Directory
from watcher.store.keys import Keys

OWN, RIVALS, ENDED = "wst_the-token-of-mine", "wst_the-token-of-the-rival", "wst_a-token-that-has-ended"
CANARIES = ("alice", "rival", MK, '"ETH"', "hooks.example")
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
    """Two subscriptions made by the API, and events of each that the other must not see."""
    await until(lambda: worker.counters.by_poll["loopring", "committed"])
    await until(lambda: worker.counters.by_poll["shop", "committed"])
    assert worker.opened
    pipe, namespace = worker.opened.schedule.pipe, rig.settings.redis.namespace
    programs = Programs(Directory(pipe, Keys(namespace)), namespace)
    for name, until_by_token, wants in (
        ("mine", {OWN: None, ENDED: 1}, {"accounts": ["treasury"], "assets": ["LRC"]}),
        ("rival", {RIVALS: None}, {"accounts": ["alice", "treasury"], "assets": [MK, "ETH"]}),
    ):
        tokens = {sha256(token.encode()).hexdigest(): until for token, until in until_by_token.items()}
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


async def test_a_subscriptions_token_opens_only_two_endpoints_of_its_own(rig: Rig) -> None:
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
    assert len(refusals) == 1, "whether it exists or not"


async def test_no_filter_cursor_or_sequence_shows_an_event_of_another_subscription(rig: Rig) -> None:
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


async def raw(api: Api, target: str, *lines: str, method: str = "GET", token: str | None = OWN) -> Said:
    """Send a request byte for byte: no client normalizes its target."""
    reader, writer = await asyncio.open_connection(api.address.host, api.address.port)
    shown = [] if token is None else [f"authorization: Bearer {token}"]
    head = [f"{method} {target} HTTP/1.1", f"host: {api.address}", "connection: close", *shown, *lines]
    writer.write("\r\n".join([*head, "", ""]).encode())
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    headers, _, body = answer.partition(b"\r\n\r\n")
    data = json.loads(body) if body.startswith(b"{") else body.decode()
    return Said(int(answer[9:12]), {"all": headers.decode()}, data, answer)


PATHS = [
    "/v1/subscriptions/mine/../rival/events",
    "/v1/subscriptions/mine%2f..%2frival/events",
    "/v1/subscriptions/mine%252f..%252frival/events",
    "/v1/subscriptions/./rival/events",
    "/v1/subscriptions/mine/events/../../rival/events",
    "/v1/subscriptions//rival/events",
    "//v1/subscriptions/rival/events",
    "/v1//subscriptions/rival/events",
    "/V1/subscriptions/rival/events",
    "/v1/subscriptions/rival/events/",
    "/v1/subscriptions/rival/events?name=mine",
    "/v1/subscriptions/rival/events#/v1/subscriptions/mine/events",
    "/v1/subscriptions/rival;mine/events",
    "/v1/subscriptions/rival%00mine/events",
    "/v1/subscriptions/mine,rival/events",
    "/v1/subscriptions/*/events",
    "/v1/subscriptions/%2a/events",
    "/v1/subscriptions/MINE/events",
    "/v1/subscriptions/mine%20/events",
    "/v1/subscriptions/%74heirs/events",
    "/v1/subscriptions/rival/balances",
    "http://elsewhere/v1/subscriptions/rival/events",
    "/v1/subscriptions/mine/events/rival",
    "/v1/accounts/alice/balances",
    "/v1/events?subscription=mine",
    "/v1/subscriptions/mine/deliveries",
    "/v1/subscriptions/mine",
]
LINES = [
    "x-http-method-override: GET",
    "x-original-url: /v1/subscriptions/rival/events",
    "x-rewrite-url: /v1/subscriptions/rival/events",
    "x-forwarded-for: 127.0.0.1",
    "x-forwarded-prefix: /v1/subscriptions/rival",
    f"cookie: token={OPERATORS}",
]


EVENTS, BALANCES = "/v1/subscriptions/mine/events", "/v1/subscriptions/mine/balances"


async def test_no_path_header_or_forged_cursor_leads_to_another_subscription(rig: Rig) -> None:
    chance = random.Random(7)
    async with rig.worker(with_key(rig.settings)) as worker, an_api_of(worker) as api:
        await some_history(rig, worker, api)
        own = (await raw(api, EVENTS)).data["items"]
        assert [event["data"]["asset"]["symbol"] for event in own] == ["LRC"] * 3
        for path in PATHS:
            seen = await raw(api, path)
            assert (seen.status in (400, 401, 403, 404), leaks(seen)) == (True, []), path
        for line in LINES:
            assert (await raw(api, "/v1/subscriptions/rival/events", line, method="POST")).status == 403
            assert (await raw(api, EVENTS, line)).data["items"] == own
        assert (await raw(api, EVENTS, f"authorization: Bearer {OPERATORS}")).status == 400, "two tokens"
        cursors = [
            (await raw(api, f"{EVENTS}?limit=1")).data["next"],
            (await raw(api, BALANCES)).data["events"],
            (await api.get("/subscriptions/rival/balances", RIVALS)).data["events"],
            *map(cursor, ("a", "alice", "treasur")),
        ]
        made_up = [urlsafe_b64encode(chance.randbytes(size)).decode().rstrip("=") for size in range(1, 40, 4)]
        for one in cursors:
            letters = [*one]
            letters[chance.randrange(len(letters))] = chance.choice("AZaz09-_")
            made_up += ["".join(letters), one[:-1], one + "A", one[: len(one) // 2]]
        found = 0
        for after in filter(None, (*cursors, *made_up)):
            for path in (EVENTS, BALANCES):
                seen = await raw(api, f"{path}?after={after}")
                assert (seen.status in (200, 400, 410), leaks(seen)) == (True, []), after
                for item in seen.data["items"] if seen.status == 200 else ():
                    found += (item.get("data") or item)["account"]["name"] == "treasury"
        assert found, "some were a place of its own"


async def test_only_the_exact_token_is_accepted_until_its_subscription_is_deleted(rig: Rig) -> None:
    digest, password = sha256(OWN.encode()).hexdigest(), b64encode(f"mine:{OWN}".encode()).decode()
    async with rig.worker(with_key(rig.settings)) as worker, an_api_of(worker) as api:
        await some_history(rig, worker, api)
        tokens = [None, "", OWN[:-1], OWN + "x", OWN.upper(), f'"{OWN}"', f"{OWN} {OWN}", ENDED, "wst_", "*"]
        tokens += [digest, digest.upper(), f"sha256:{digest}", "mine", "null", OPERATORS[:-1]]
        seen = [await raw(api, EVENTS, token=token) for token in tokens]
        seen += [await raw(api, f"{EVENTS}?{name}={OWN}", token=None) for name in ("token", "access_token")]
        seen += [
            await raw(api, EVENTS, line, token=None)
            for line in (
                *(f"authorization: Basic {password}", f"authorization: {OWN}", f"authorization: Token {OWN}"),
                *(f"cookie: token={OWN}", f"x-api-key: {OWN}", f"proxy-authorization: Bearer {OWN}"),
            )
        ]
        assert {one.status for one in seen} == {401}
        (refusal,) = {json.dumps(one.data) for one in seen}
        for elsewhere in ("/metrics", "/readyz", "/page", "/"):
            assert (await raw(api, elsewhere)).status == 401
        assert (await raw(api, EVENTS)).status == 200
        assert worker.opened
        assert worker.followed
        keys = Keys(rig.settings.redis.namespace)
        await Directory(worker.opened.schedule.pipe, keys).delete("subscription", "mine", expected=None)
        await worker.followed.follow_now()
        assert json.dumps((await raw(api, EVENTS)).data) == refusal
