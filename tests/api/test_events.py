"""A subscription pulls the events that were sent to it, byte for byte, and no others."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession

from tests.docs.blocks import BLOCKS
from tests.support.builders import a_subscription
from tests.support.directory import with_key
from tests.support.rig import ALICE, MK, TREASURY, Rig, a_rig
from watcher.api import events
from watcher.api.access import Access, Address
from watcher.api.server import Listener
from watcher.captured import Captured
from watcher.run.worker import Worker
from watcher.settings import SubscriptionSettings
from watcher.store.history import Cursor, History
from watcher.store.keys import Keys, shard_of
from watcher.store.reader import Reader

OPERATORS = "the-token-of-the-operator"
TOKENS = {name: f"the-token-of-{name}" for name in ("ops", "shop", "lrc")}
NAME_BY_HASH = {sha256(token.encode()).hexdigest(): name for name, token in TOKENS.items()}


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        rig.settings = with_key(rig.settings)
        yield rig


async def until(claim: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not claim():  # noqa: ASYNC110 - what is waited for has no signal
            await asyncio.sleep(0.005)


class Said(NamedTuple):
    status: int
    raw: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.raw)


class Api:
    def __init__(self, url: str, session: ClientSession) -> None:
        self.url = url
        self._session = session

    async def get(self, path: str, token: str = OPERATORS, **query: Any) -> Said:
        headers = {"authorization": f"Bearer {token}"}
        async with self._session.get(self.url + path, params=query, headers=headers) as seen:
            return Said(seen.status, await seen.read())

    async def items(self, path: str, token: str = OPERATORS, **query: Any) -> tuple[list[Any], str]:
        """All items, page by page, and where it goes on."""
        items: list[Any] = []
        while True:
            seen = (await self.get(path, token, **query)).data
            items += seen["items"]
            query["after"] = seen["next"]
            if not seen["more"]:
                return items, seen["next"]


@asynccontextmanager
async def an_api(worker: Worker) -> AsyncIterator[Api]:
    routes, access = events.routes(worker), Access(OPERATORS, NAME_BY_HASH.get)
    listener = Listener(Address("127.0.0.1", 0), {}, token=OPERATORS, api=routes, access=access)
    async with listener, ClientSession() as session:
        await until(lambda: worker.followed is not None and worker.has_begun)
        yield Api(f"http://127.0.0.1:{listener.address.port}/v1", session)


def subscribed(rig: Rig, *subscriptions: SubscriptionSettings) -> None:
    rig.settings = rig.settings.model_copy(
        update={"subscription_by_name": {one.name: one for one in subscriptions}}
    )


def some(rig: Rig) -> tuple[SubscriptionSettings, ...]:
    url = rig.receiver.url
    return (
        a_subscription("ops", f"{url}ops", events=("*",)),
        a_subscription("shop", f"{url}shop", accounts=("alice",)),
        a_subscription("lrc", f"{url}lrc", assets=("LRC",)),
    )


async def live(rig: Rig, worker: Worker) -> None:
    """Some events of both accounts, in order."""
    world, before = rig.sandbox.world, worker.counters.changes
    for number in range(1, 5):
        world.credit(TREASURY, "ETH" if number % 2 else "LRC", number)
        world.credit(ALICE, MK, number)
        await until(lambda: worker.counters.changes >= before + 2 * number)  # noqa: B023
    await until(lambda: not worker.in_flight)


async def test_pulled_events_have_the_bytes_and_the_order_of_those_that_were_sent(rig: Rig) -> None:
    sent: dict[str, list[bytes]] = {}

    def capture(request: Captured) -> str | None:
        sent.setdefault(request.target.strip("/"), []).append(request.body)
        return None

    subscribed(rig, *some(rig))
    rig.receiver.capture = capture
    async with rig.worker() as worker, an_api(worker) as api:
        await until(lambda: len(sent.get("ops", ())) == 2)
        await live(rig, worker)
        await until(lambda: [len(sent.get(name, ())) for name in TOKENS] == [10, 4, 2])
        for name, token in TOKENS.items():
            for limit in (1, 1000):
                items, _ = await api.items(f"/subscriptions/{name}/events", token, limit=limit)
                assert len(items) == len(sent[name])
            raw = (await api.get(f"/subscriptions/{name}/events", token)).raw
            for account in ("treasury", "alice"):
                mine = [body for body in sent[name] if json.loads(body)["data"]["account"]["name"] == account]
                places = [raw.index(body) for body in mine]
                assert places == sorted(places), "these bytes, in this order"
            seen = (await api.get("/events", subscription=name)).raw
            assert seen.partition(b',"next":')[0] == raw.partition(b',"next":')[0], "and so does the operator"
        everything = (await api.get("/events", limit=1000)).data["items"]
        assert len(everything) == 10
        assert all("subscription" not in event for event in everything)
        types = [event["type"] for event in (await api.get("/events", type="account.*")).data["items"]]
        assert types == ["account.baseline"] * 2


async def test_balances_and_the_events_after_them_add_up_to_the_last_digit(
    rig: Rig,
) -> None:
    subscribed(rig, *some(rig))
    async with rig.worker() as worker, an_api(worker) as api:
        await live(rig, worker)
        path, token = "/subscriptions/ops", TOKENS["ops"]
        first = (await api.get(f"{path}/balances", token, limit=1)).data
        assert [item["account"]["name"] for item in first["items"]] == ["alice"]
        await live(rig, worker)
        second = (await api.get(f"{path}/balances", token, limit=1, after=first["next"])).data
        assert [item["account"]["name"] for item in second["items"]] == ["treasury"]
        assert second["next"] is None
        await live(rig, worker)
        items = [*first["items"], *second["items"]]
        pulled, _ = await api.items(f"{path}/events", token, after=first["events"])
        for item in items:
            account, sequence = item["account"]["name"], item["sequence"]
            behind, _ = await api.items(f"{path}/events", token, after=sequence, account=account)
            mine = [event for event in pulled if event["data"]["account"]["name"] == account]
            assert behind == [event for event in mine if event["data"]["sequence"] > sequence]
            assert behind[0]["subscription"]["previous_sequence"] == sequence
            held = {balance["asset"]["id"]: balance["total"] for balance in item["balances"]}
            for event in behind:
                asset = event["data"]["asset"]["id"]
                assert held.get(asset, "0") == event["data"]["before"]["total"]
                held[asset] = event["data"]["after"]["total"]
            now = (await api.get(f"{path}/balances", token)).data["items"]
            (there,) = (one for one in now if one["account"]["name"] == account)
            assert held == {balance["asset"]["id"]: balance["total"] for balance in there["balances"]}
            assert behind[-1]["data"]["sequence"] == there["sequence"]


async def test_balances_of_a_subscription_that_names_its_accounts_come_page_by_page(rig: Rig) -> None:
    named = ("treasury", "nobody", "alice")
    subscribed(rig, a_subscription("ops", f"{rig.receiver.url}ops", accounts=named))
    async with rig.worker() as worker, an_api(worker) as api:
        path, token, pages = "/subscriptions/ops/balances", TOKENS["ops"], list[list[str]]()
        query: dict[str, Any] = {}
        while not pages or query["after"]:
            seen = (await api.get(path, token, limit=1, **query)).data
            pages.append([item["account"]["name"] for item in seen["items"]])
            query = {"after": seen["next"]}
        assert pages == [["alice"], ["treasury"]]


async def test_whatever_it_asks_a_subscription_sees_only_its_own_accounts_assets_and_types(rig: Rig) -> None:
    subscribed(rig, *some(rig))
    async with rig.worker() as worker, an_api(worker) as api:
        await live(rig, worker)
        ops = (await api.get("/subscriptions/ops/events", TOKENS["ops"], limit=1)).data["next"]
        everyones = (await api.get("/events", limit=1)).data["next"]
        begun = (await api.get("/subscriptions/ops/balances", TOKENS["ops"])).data["events"]
        for name in ("shop", "lrc"):
            token, path = TOKENS[name], f"/subscriptions/{name}"
            mine = (await api.get(f"{path}/events", token, limit=1)).data["next"]
            for query in ({}, {"after": mine}, {"type": "*"}, {"limit": 1000}):
                seen = await api.get(f"{path}/events", token, **query)
                assert seen.status == 200
                for event in seen.data["items"]:
                    assert event["subscription"]["name"] == name
                    assert name == "lrc" or event["data"]["account"]["name"] == "alice"
                    assert name == "shop" or event["data"]["asset"]["symbol"] == "LRC"
                    assert event["type"] == "total.increased"
            forged = mine[:-2] + ("AA" if mine[-2:] != "AA" else "BB")
            for after in (ops, everyones, begun, forged, Cursor().text):
                assert (await api.get(f"{path}/events", token, after=after)).status == 400
            with pytest.raises(ValueError, match="no cursor"):
                Cursor.read(mine)  # when others got anything stands in it, and is encrypted
            balances = (await api.get(f"{path}/balances", token)).data["items"]
            for item in balances:
                assert name == "lrc" or item["account"]["name"] == "alice"
                symbols = {one["asset"]["symbol"] for one in item["balances"]}
                assert symbols == ({"MK"} if name == "shop" else symbols & {"LRC"})
            assert any(item["balances"] for item in balances)
            for elsewhere in (
                "/events",
                "/subscriptions/ops/events",
                "/subscriptions/ops/balances",
                "/accounts",
            ):
                assert (await api.get(elsewhere, token)).status == 403
            assert (await api.get(f"{path}/events", token, subscription="ops")).status == 400
            assert (await api.get(f"{path}/events", token, events="*")).status == 400
        foreign = await api.get("/subscriptions/shop/events", TOKENS["shop"], account="treasury")
        unknown = await api.get("/subscriptions/shop/events", TOKENS["shop"], account="nobody")
        assert foreign.status == unknown.status == 404
        assert foreign.raw.replace(b"treasury", b"nobody") == unknown.raw, "nor whether the account exists"
        narrowed = worker.settings.subscription_by_name["ops"].model_copy(update={"accounts": ("alice",)})
        assert worker.configured
        worker.configured.interest.change({"ops": narrowed})
        seen = await api.get("/subscriptions/ops/events", TOKENS["ops"], limit=1000)
        assert {event["data"]["account"]["name"] for event in seen.data["items"]} == {"alice"}
        other = worker.settings.subscription_by_name["lrc"].model_copy(update={"assets": ("ETH",)})
        worker.configured.interest.change({"lrc": other})
        seen = await api.get("/subscriptions/lrc/events", TOKENS["lrc"], limit=1000)
        assert seen.data["items"] == []


async def test_an_invalid_request_is_refused_and_one_for_trimmed_events_names_the_oldest_left(
    rig: Rig,
) -> None:
    subscribed(rig, *some(rig))
    async with rig.worker() as worker, an_api(worker) as api:
        await live(rig, worker)
        before, end = (await api.items("/events"))[1], (await api.get("/events", limit=1000)).data["next"]
        assert before == end
        for query in (
            {"after": "5"},
            {"after": end[:-1] + ("A" if end[-1] != "A" else "B")},
            {"after": end + "A"},
            {"after": "-1", "account": "treasury"},
            {"after": "1" * 15, "account": "treasury"},
            {"limit": 0},
            {"limit": 1001},
            {"type": ""},
            {"type": "*a" * 33},  # it is read at every request, while all else waits
            {"type": "deposit.\n"},
        ):
            seen = await api.get("/events", **query)
            assert (seen.status, seen.data["title"]) == (400, "Bad Request"), query
        assert (await api.get("/subscriptions/nobody/events")).status == 404
        assert (await api.get("/subscriptions/nobody/balances")).status == 404
        assert (await api.get("/events", account="nobody", after=5)).status == 404
        assert worker.opened
        pipe, keys = worker.opened.schedule.pipe, Keys(worker.settings.redis.namespace)
        states = {
            seen.account: seen.state
            async for seen in Reader(pipe, keys).read_states({"treasury": "loopring"})
        }
        state = states["treasury"]
        assert state
        shard = shard_of("treasury")
        last = (await History(pipe, keys).ends())[shard]
        gone = (await api.get("/events", limit=1)).data["next"]
        await pipe.command("DEL", keys.log(shard))
        await pipe.command("HSET", keys.sizes(shard), "trimmed", last)
        rig.is_damaged = True
        for query in ({"after": gone}, {"after": 0, "account": "treasury"}):
            seen = await api.get("/events", **query)
            assert (seen.status, seen.data["title"]) == (410, "Gone")
            oldest = seen.data["oldest"]
            assert oldest == (state.sequence if "account" in query else Cursor().text)
            held = await api.get("/events", **{**query, "after": oldest})
            assert held.status == 200
            assert {event["data"]["account"]["name"] for event in held.data["items"]} <= {"alice"}
        assert (await api.get("/events", after=state.sequence, account="treasury")).data["items"] == []


async def test_the_program_of_the_readme_pulls_missing_events_and_none_twice(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = (one.text for one in BLOCKS if "Journal(" in one.text)
    subscribed(rig, *some(rig))
    async with rig.worker() as worker, an_api(worker) as api:
        await live(rig, worker)
        for old, new in (
            ("https://watcher.example.com/v1", api.url),
            ("the token that PUT showed", TOKENS["ops"]),
            ("receiver.db", str(tmp_path / "receiver.db")),
        ):
            assert program.count(old) == 1
            program = program.replace(old, new)
        said = [await asyncio.to_thread(ran, program, capsys)]
        await live(rig, worker)
        said += [await asyncio.to_thread(ran, program, capsys) for _ in range(2)]
        totals = {
            (item["account"]["name"], row["asset"]["id"]): row["total"]
            for item in (await api.get("/subscriptions/ops/balances")).data["items"]
            for row in item["balances"]
        }
    assert [len(lines) for lines in said] == [0, 8, 0], "it begins with balances, and takes each event once"
    assert sorted(said[1]) == sorted(moved(rig))
    with closing(sqlite3.connect(tmp_path / "receiver.db")) as database:
        kept = dict(database.execute("SELECT account, kept FROM journal WHERE account > ''"))
    assert totals == {
        (account, asset): balance["total"]
        for account, one in kept.items()
        for asset, balance in json.loads(one)["balances"].items()
    }


def ran(program: str, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, Decimal]]:
    """Run a program with a database of its own; returns what it says of totals that moved."""
    names: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), names)
    names["database"].close()
    lines = (line.split() for line in capsys.readouterr().out.splitlines())
    return [(words[0], words[1], Decimal(words[2])) for words in lines if words[0] in ("alice", "treasury")]


def moved(rig: Rig) -> list[tuple[str, str, Decimal]]:
    """The same of the last events that were sent."""
    sent = [event["data"] for event in rig.receiver.events if event["subscription"]["name"] == "ops"][-8:]
    return [(one["account"]["name"], one["asset"]["id"], Decimal(one["effect"]["total"])) for one in sent]
