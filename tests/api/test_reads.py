"""What programs read under /v1: entries of the file and of the directory, without a secret."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any, NamedTuple

import pytest
from pydantic import SecretStr

from tests.support.api import OPERATORS, Api, an_api_of
from tests.support.builders import SECRET, a_subscription
from tests.support.directory import KEY, Programs, with_key
from tests.support.rig import TREASURY, Rig, a_rig
from watcher.delivery.signing import new_secret
from watcher.receiver import Fail
from watcher.run.worker import Worker
from watcher.store.directory import Directory
from watcher.store.keys import Keys
from watcher.store.queues import Breakers

HOOK = "https://hooks.example.com/in/canary-of-a-path?token=canary-of-a-query"
HEADERS = {"x-key": "canary-of-a-header"}
OTHER = "whsec_" + "Y2FuYXJ5" * 4
TOKEN = "wst_canary-of-a-token"


class Scene(NamedTuple):
    rig: Rig
    worker: Worker
    api: Api
    programs: Programs

    @property
    def breakers(self) -> Breakers:
        assert self.worker.opened
        return Breakers(self.worker.opened.schedule.pipe, Keys(self.rig.settings.redis.namespace))


@asynccontextmanager
async def a_scene(rig: Rig, *, has_key: bool = True) -> AsyncIterator[Scene]:
    settings = with_key(rig.settings) if has_key else rig.settings
    async with rig.worker(settings) as worker, an_api_of(worker) as api:
        await until(lambda: worker.has_begun and worker.counters.polls)
        assert worker.opened
        pipe, namespace = worker.opened.schedule.pipe, rig.settings.redis.namespace
        yield Scene(rig, worker, api, Programs(Directory(pipe, Keys(namespace)), namespace))


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


async def until(claim: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not claim():  # noqa: ASYNC110 - what is waited for has no signal
            await asyncio.sleep(0.005)


async def test_accounts_of_the_file_and_of_the_api_are_one_list_sorted_by_name(rig: Rig) -> None:
    async with a_scene(rig) as (_, worker, api, programs):
        for name in ("bob", "zoe", "treasury"):
            await programs.put_account(name, "loopring", account_id=7, interval="60s")
        assert worker.followed
        await worker.followed.follow_now()
        seen = (await api.get("/accounts")).data
        pages = [await api.names("/accounts", limit=limit) for limit in (1, 2, 3, 4)]
        one, shadowed = await api.get("/accounts/bob"), await api.get("/accounts/treasury")
    assert pages == [["alice", "bob", "treasury", "zoe"]] * 4
    assert [(item["name"], item["read_only"]) for item in seen["items"]] == [
        ("alice", True),
        ("bob", False),
        ("treasury", True),
        ("zoe", False),
    ]
    assert one.headers["etag"] == f'"{one.data["version"]}"'
    assert one.data["settings"] == {
        "provider": "loopring",
        "interval": "1m",
        "pending_interval": "10s",
        "account_id": 7,
    }
    assert "etag" not in shadowed.headers
    assert shadowed.data["settings"]["account_id"] == TREASURY


async def test_an_account_shows_when_it_was_polled_and_what_is_wrong_with_it(rig: Rig) -> None:
    async with a_scene(rig) as (_, worker, api, programs):
        async with asyncio.timeout(10):
            while not (well := (await api.get("/accounts/treasury")).data["status"])["polled_at"]:
                pass
        balances = (await api.get("/accounts/treasury/balances")).data
        await programs.put_account("new", "loopring", account_id=987654321)
        await until(lambda: worker.counters.rejected)
        seen = (await api.get("/accounts/new")).data
        unread = (await api.get("/accounts/new/balances")).data
    assert (well["problems"], well["reason"], well["rejections"]) == ([], None, 0)
    assert well["polled_at"] == balances["polled_at"] or balances["age_s"] == 0
    assert {"ETH", "LRC"} <= {line["asset"]["symbol"] for line in balances["balances"]}
    assert balances["sequence"] > 0
    assert "never read" in seen["status"]["problems"]
    assert seen["status"]["rejections"] > 0
    assert (unread["polled_at"], unread["balances"], unread["provider"]) == (None, [], "loopring")


async def test_a_subscription_shows_its_state_and_its_backlog(rig: Rig) -> None:
    async with a_scene(rig) as scene:
        _, worker, api, programs = scene
        await programs.put_subscription("new", HOOK, is_verified=False, accounts=["treasury"])
        await scene.breakers.change("ops", lambda _, now_ms: a_pause(now_ms))
        await asyncio.sleep(0)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        await until(lambda: worker.counters.changes)
        new, ops = (await api.get("/subscriptions/new")), (await api.get("/subscriptions/ops")).data
        names = await api.names("/subscriptions", limit=1)
        await scene.breakers.resume("ops")
    assert names == ["new", "ops"]
    assert (new.data["read_only"], new.data["state"], ops["read_only"]) == (False, "unverified", True)
    assert new.headers["etag"] == f'"{new.data["version"]}"'
    assert (ops["status"]["state"], ops["status"]["reason"]) == ("paused", "by hand")
    assert ops["status"]["deliveries"] >= 0
    assert new.data["settings"]["url"] == "https://hooks.example.com/***"


def a_pause(now_ms: int) -> Any:
    from watcher.engine.breaker import paused

    return paused(None, now_ms, reason="by hand")


async def test_deliveries_and_dead_letters_are_listed_page_by_page_and_none_twice(rig: Rig) -> None:
    rig.receiver.fail = Fail(410, 10**6)
    async with a_scene(rig) as scene:
        _, worker, api, _ = scene
        for number in range(1, 8):
            rig.sandbox.world.credit(TREASURY, "ETH", number)
            rig.sandbox.world.credit(TREASURY, "LRC", number)
            await until(lambda: worker.counters.changes >= 2 * number)  # noqa: B023
        whole = (await api.get("/subscriptions/ops/deliveries", limit=1000)).data
        ids: list[str] = []
        query: dict[str, Any] = {"limit": 3}
        while True:
            page = (await api.get("/subscriptions/ops/deliveries", **query)).data
            ids += [item["event_id"] for item in page["items"]]
            if not page["next"]:
                break
            query["after"] = page["next"]
        dead = (await api.get("/subscriptions/ops/deliveries", state="dead")).data
        rig.receiver.fail = None
    assert [item["event_id"] for item in whole["items"]] == ids
    assert len(ids) == len({*ids}) >= 10
    assert {item["account"] for item in whole["items"]} == {"treasury"}
    assert dead == {"items": [], "next": None}


REFUSED = [
    ("/accounts/nobody", 404, "there is no account 'nobody'"),
    ("/accounts/nobody/balances", 404, "there is no account"),
    ("/accounts/..%2F..%2Fetc", 404, "there is no account '../../etc'"),
    ("/accounts/%00%1b[31m", 404, "there is no account"),
    ("/accounts/" + "x" * 5000, 404, "there is no account"),
    ("/accounts/ALICE", 404, "there is no account"),
    ("/subscriptions/nobody", 404, "there is no subscription 'nobody'"),
    ("/subscriptions/nobody/deliveries", 404, "there is no subscription"),
    ("/subscriptions/ops/deliveries?state=all", 400, "waiting or dead"),
    ("/subscriptions/ops/deliveries?after=YQ", 400, "after"),
    ("/subscriptions/ops/deliveries?after=W10", 400, "after"),
    ("/subscriptions/ops/deliveries?after=WyJkZWFkIiwgMCwgIiIsIDAsICIiXQ", 400, "after"),
    (f"/subscriptions/ops/deliveries?after={'W1tb' * 2000}", 400, "after"),  # [[[[ as base64
    ("/subscriptions/ops?limit=3", 400, "there is no parameter 'limit'"),
    ("/accounts/alice?x=1", 400, "there is no parameter 'x': this request takes none"),
    ("/accounts?limt=1", 400, "there is no parameter 'limt': use after, limit"),
]


async def test_a_missing_resource_is_a_problem_that_quotes_its_name_escaped(rig: Rig) -> None:
    async with a_scene(rig) as (_, _, api, _):
        for path, status, why in REFUSED:
            seen = await api.get(path)
            assert (seen.status, why in seen.data["detail"]) == (status, True), path
            assert seen.data["detail"].isprintable()
            assert len(seen.data["detail"]) < 200


async def test_no_answer_shows_a_secret_with_or_without_the_key(rig: Rig) -> None:
    named = a_subscription("named", HOOK, headers=HEADERS).model_copy(update={"secrets": (SecretStr(OTHER),)})
    rig.settings = rig.settings.model_copy(
        update={"subscription_by_name": {**rig.settings.subscription_by_name, "named": named}}
    )
    secret, texts = new_secret(), list[str]()
    async with a_scene(rig) as (_, _, api, programs):
        tokens = {sha256(TOKEN.encode()).hexdigest(): None}
        await programs.put_subscription(
            "made", HOOK, headers=HEADERS, secrets={secret: None}, tokens=tokens, accounts=["nothing"]
        )
        for path in ("/subscriptions", "/subscriptions/made", "/subscriptions/named", "/accounts", "/"):
            seen = await api.get(path)
            texts.append(f"{seen}")
        own = await api.get("/subscriptions/made/events", TOKEN)
        foreign = await api.get("/subscriptions/named/events", TOKEN)
    assert (own.status, foreign.status) == (200, 403)
    async with a_scene(rig, has_key=False) as (_, _, api, _):
        locked = (await api.get("/subscriptions/made")).data
        texts.append(f"{locked}{(await api.get('/subscriptions')).data}")
    assert (locked["state"], locked["settings"]) == ("locked", {"accounts": ["nothing"]})
    for canary in ("canary", SECRET, OTHER, secret, KEY, OPERATORS, *tokens):
        assert canary not in "".join(texts), canary


async def test_a_worker_that_is_still_starting_says_so(rig: Rig) -> None:
    async with an_api_of(Worker(rig.settings, name="w")) as api:
        for path in ("/accounts", "/accounts/treasury", "/subscriptions", "/subscriptions/ops/deliveries"):
            seen = await api.get(path)
            assert (seen.status, seen.headers["retry-after"]) == (503, "2")
