"""Accounts and subscriptions are edited, pinged and sent to through the API of a real worker."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from random import Random
from typing import Any

import pytest
from aiohttp import ClientError
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support import fuzzing
from tests.support.api import OPERATORS, Api, Said, an_api_of
from tests.support.builders import SECRET
from tests.support.directory import with_key
from tests.support.rig import ALICE, MK, TREASURY, Rig, a_rig
from tests.support.scraped import get
from tests.support.stores import a_store
from watcher.api import access, edits, server
from watcher.api.edits import LINES, _after
from watcher.api.openapi import OPERATIONS
from watcher.delivery.resend import Reached, Selection
from watcher.receive import check_secrets
from watcher.receiver import Fail
from watcher.run import directory, verification
from watcher.run.worker import Worker
from watcher.store.directory import Directory, Write, Written
from watcher.store.keys import MOST, SHARDS, Keys
from watcher.store.reader import Reader

BOB = {"provider": "loopring", "account_id": 10111}


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        rig.settings = with_key(rig.settings)
        yield rig


@asynccontextmanager
async def a_worker(rig: Rig) -> AsyncIterator[tuple[Worker, Api]]:
    """A worker that has begun, and its API."""
    async with rig.worker() as worker, an_api_of(worker) as api:
        async with asyncio.timeout(10):
            while (await api.get("/accounts")).status == 503:  # noqa: ASYNC110 - it has no signal
                await asyncio.sleep(0.005)
        yield worker, api


async def ask(
    api: Api, method: str, path: str, body: Any = None, *, headers: Iterable[tuple[str, str]] = ()
) -> Said:
    """Send a body that is no bytes as JSON."""
    given = {"content-type": "application/json"} if body is not None else {}
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    file = None if data is None else BytesIO(data)  # a client that sends bytes at once warns of many
    return await api.ask(method, path, data=file, headers={**given, **dict(headers)})


def flaws(refused: Said) -> dict[str, str]:
    """The findings of a body, by their pointers."""
    return {one["pointer"]: one["detail"] for one in refused.data["errors"]}


async def until(claim: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not claim():  # noqa: ASYNC110 - what is waited for has no signal
            await asyncio.sleep(0.005)


async def test_an_account_is_created_read_changed_and_deleted(rig: Rig) -> None:
    async with a_worker(rig) as (_, api):
        made = await ask(api, "PUT", "/accounts/bob", BOB)
        assert (made.status, made.data) == (201, {"name": "bob", "change": "created"})
        assert made.headers["location"] == "/v1/accounts/bob"
        shown = await ask(api, "GET", "/accounts/bob")
        assert shown.headers["etag"] == made.headers["etag"]
        again = await ask(api, "PUT", "/accounts/bob", {**BOB, "name": "bob"})
        assert (again.status, again.data["change"]) == (200, "unchanged")
        assert again.headers["etag"] == made.headers["etag"]
        changed = await ask(api, "PUT", "/accounts/bob", {**BOB, "interval": "1m"})
        assert (changed.status, changed.data["change"]) == (200, "changed")
        assert changed.headers["etag"] != made.headers["etag"]
        assert (await ask(api, "GET", "/accounts/bob")).data["settings"]["interval"] == "1m"
        woken = await ask(api, "POST", "/accounts/bob/poll")
        assert (woken.status, woken.data["account"]) == (202, "bob")
        assert (await ask(api, "DELETE", "/accounts/bob")).status == 204
        assert (await ask(api, "DELETE", "/accounts/bob")).status == 404
        assert (await ask(api, "GET", "/accounts/bob")).status == 404
        assert (await ask(api, "POST", "/accounts/bob/poll")).status == 404


async def test_edits_are_guarded_by_etags(rig: Rig) -> None:
    async with a_worker(rig) as (_, api):

        async def answer(interval: str, **headers: str) -> Said:
            named = [(name.replace("_", "-"), value) for name, value in headers.items()]
            return await ask(api, "PUT", "/accounts/bob", {**BOB, "interval": interval}, headers=named)

        async def put(interval: str, **headers: str) -> int:
            return (await answer(interval, **headers)).status

        assert (await answer("1m", if_match="*")).data["detail"] == "account bob is not there"
        assert await put("1m", if_match="*") == 412
        assert await put("1m", if_match='"1"') == 412
        assert await put("1m", if_none_match="*") == 201
        assert (await answer("2m", if_none_match="*")).data["detail"] == "account bob is there already"
        assert await put("2m", if_none_match="*") == 412
        tag = (await ask(api, "GET", "/accounts/bob")).headers["etag"]
        assert await put("2m", if_none_match=f'"1", {tag}') == 412
        assert await put("2m", if_match=f"W/{tag}") == 412, "weak tags never match"
        assert await put("2m", if_match=f'"1", {tag}') == 200
        late = await answer("3m", if_match=tag)
        assert (late.status, late.data["detail"]) == (412, "account bob has another version")
        assert await put("3m", if_match="*") == 200
        for odd in ("1", '"1', '"1" "2"', "**", ""):
            assert await put("4m", if_match=odd) == 400, odd
        old = [("if-match", tag)]
        assert (await ask(api, "DELETE", "/accounts/bob", headers=old)).status == 412
        now = [("if-match", (await ask(api, "GET", "/accounts/bob")).headers["etag"])]
        assert (await ask(api, "DELETE", "/accounts/bob", headers=now)).status == 204


async def test_a_body_is_refused_with_all_its_mistakes_in_the_words_of_check(rig: Rig) -> None:
    async with a_worker(rig) as (_, api):
        odd = {"url": "http://10.0.0.1/", "secrets": ["x"], "colour": 1, "alerts_to": "ups", "name": "new"}
        refused = await ask(api, "PUT", "/subscriptions/new", odd)
        assert refused.status == 422
        assert refused.headers["content-type"] == "application/problem+json"
        assert flaws(refused).keys() == {"/url", "/secrets/0", "/colour", "/alerts_to"}
        assert flaws(refused)["/alerts_to"] == "no [[subscriptions]] of this name -- did you mean 'ops'?"
        refused = await ask(api, "PUT", "/accounts/bob", {"provider": "loopring", "account_id": 10110})
        assert flaws(refused) == {"": "is the same account at the same provider as treasury"}
        refused = await ask(api, "PUT", "/accounts/bob", {"provider": "lopring"})
        assert flaws(refused) == {"/provider": "no [providers.NAME] of this name -- did you mean 'loopring'?"}
        assert (await ask(api, "PUT", "/accounts/b%20b", BOB)).status == 422


HOSTILE: Mapping[bytes, int] = {
    b"": 400,
    b"null": 400,
    b'{"a": NaN}': 400,
    b'{"provider": "loopring", "provider": "shop"}': 400,
    b'{"name": "alice"}': 400,
    b"\xff": 400,
    b"[" * 5000: 400,
    b'{"provider": "loopring", "account_id": ' + b"9" * 5000 + b"}": 400,
    b'{"provider": "loopring", "account_id": 1e400}': 400,
    b'{"provider": "' + b"x" * 65_000 + b'"}': 422,
    b'{"provider": "' + b"x" * 66_000 + b'"}': 413,
}


async def test_a_hostile_body_is_refused(rig: Rig) -> None:
    async with a_worker(rig) as (_, api):
        for body, status in HOSTILE.items():
            assert (await ask(api, "PUT", "/accounts/bob", body)).status == status, body[:60]
        for type_ in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
            typed = [("content-type", type_)]
            assert (await ask(api, "PUT", "/accounts/bob", BOB, headers=typed)).status == 415


async def test_no_damaged_body_causes_a_bug(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PER_SECOND", 100_000)
    chance, names = Random(18), ("name", "url", "provider", "of", "accounts", "secrets", "asset", "below")
    goods = {
        "/accounts/bob": BOB,
        "/subscriptions/new": {
            "url": "https://a.example.com/",
            "thresholds": [{"asset": "LRC", "below": "1"}],
        },
        "/subscriptions/ops/resend": {"since": "1h", "dry_run": True},
    }
    async with a_worker(rig) as (_, api):
        for number in range(240):
            path, good = chance.choice([*goods.items()])
            body = json.dumps(fuzzing._damaged(chance, good, names)).encode()
            if number % 2:
                body = fuzzing._spoiled(chance, body, chance.randbytes(6))
            said = await ask(api, "POST" if path.endswith("resend") else "PUT", path, body)
            assert said.status in (200, 201, 400, 404, 409, 413, 422), body
            line = [("content-type", "application/jsonl")]
            if number % 8 == 0:
                assert (await ask(api, "POST", "/accounts:batch", body or b"{", headers=line)).status in (
                    200,
                    400,
                )


async def test_what_the_file_defines_is_read_only_but_may_be_paused(rig: Rig) -> None:
    async with a_worker(rig) as (_, api):
        for method, path, body in (
            ("PUT", "/accounts/treasury", BOB),
            ("DELETE", "/accounts/treasury", None),
            ("PUT", "/subscriptions/ops", {"url": "https://ops.example.com/"}),
            ("DELETE", "/subscriptions/ops", None),
            ("POST", "/subscriptions/ops/secret", None),
            ("POST", "/subscriptions/ops/token", None),
        ):
            refused = await ask(api, method, path, body)
            assert refused.status == 409
            assert "configuration file" in refused.data["detail"]
        assert "read its events with the operator's" in refused.data["detail"]
        with capture_logs() as lines:
            assert (await ask(api, "POST", "/subscriptions/ops/pause")).data["change"] == "paused"
            assert (await ask(api, "POST", "/subscriptions/ops/pause")).data["change"] == "unchanged"
            assert (await ask(api, "GET", "/subscriptions/ops")).data["status"]["state"] == "paused"
            assert (await ask(api, "POST", "/subscriptions/ops/resume")).data["change"] == "resumed"
            assert (await ask(api, "POST", "/subscriptions/none/pause")).status == 404
        audited = [
            (one["name"], one["change"], one["by"]) for one in lines if one["event"] == "directory.changed"
        ]
        assert audited == [("ops", "paused", "operator"), ("ops", "resumed", "operator")]
        assert (await ask(api, "POST", "/accounts/treasury/poll")).status == 202


async def test_secrets_and_tokens_are_shown_by_the_answer_that_made_them_alone(rig: Rig) -> None:
    async with a_worker(rig) as (_, api):
        with capture_logs() as lines:
            body = {"url": f"{rig.receiver.url}canary-url", "headers": {"x-key": "canary-header"}}
            made = (await ask(api, "PUT", "/subscriptions/new", body)).data
            check_secrets(made["secrets"])
            renewed = (await ask(api, "POST", "/subscriptions/new/secret")).data
            token = (await ask(api, "POST", "/subscriptions/new/token")).data
            await ask(api, "PUT", "/subscriptions/given", {**body, "secrets": [SECRET]})
            hidden = ["canary-url", "canary-header", SECRET, made["token"], token["token"]]
            hidden += [*made["secrets"], *renewed["secrets"]]
            api.said.clear()
            await ask(api, "PUT", "/subscriptions/new", body)
            await ask(api, "PUT", "/subscriptions/new", {**body, "headers": {"x-key": "canary-header\n"}})
            for one in OPERATIONS:
                if one.method == "get":
                    await ask(api, "GET", one.path.removeprefix("/v1").format(name="new"))
            for action in ("pause", "resume", "resend"):
                await ask(
                    api,
                    "POST",
                    f"/subscriptions/new/{action}",
                    {"dead": True} if action == "resend" else None,
                )
            await ask(api, "DELETE", "/subscriptions/new")
            await ask(api, "DELETE", "/subscriptions/given")
            metrics = await get(api.address.port, "/metrics", f"Authorization: Bearer {OPERATORS}")
        everything = b"".join(api.said).decode() + json.dumps(lines, default=str) + metrics.body
        assert metrics.status == 200
        assert '"name":"new"' in everything
        assert [one for one in hidden if one in everything] == []


async def test_redis_holds_names_and_filters_in_plain_text_and_nothing_else(
    rig: Rig, redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While events wait, attempts fail, secrets and tokens change: no key and no value shows it."""
    monkeypatch.setattr(verification, "SPACING_MS", 1)
    treasury = {"treasury": rig.settings.account_by_name["treasury"]}
    rig.settings = rig.settings.model_copy(update={"account_by_name": treasury})
    async with a_worker(rig) as (_, api):
        account = {"provider": "shop", "of": {"email": ALICE}, "currencies": [MK], "interval": "1s"}
        hidden = ["canary", ALICE]
        for name, url in (("hook", rig.receiver.url), ("chat", f"{rig.receiver.url}canary-token")):
            body = {
                "url": f"{url}?key=canary-key",
                "headers": {"x-key": "canary-header"},
                "secrets": [SECRET],
            }
            body |= {"accounts": ["bob"], "events": ["account.baseline"], "retries": ["0s", "50ms"]}
            made = (await ask(api, "PUT", f"/subscriptions/{name}", body)).data
            hidden += [made["token"], SECRET]
            hidden += (await ask(api, "POST", f"/subscriptions/{name}/secret")).data["secrets"]
            hidden.append((await ask(api, "POST", f"/subscriptions/{name}/token")).data["token"])
            assert (await ask(api, "POST", f"/subscriptions/{name}/ping")).data["verified"]
        rig.receiver.fail = Fail(503, times=100)
        assert (await ask(api, "PUT", "/accounts/bob", account)).status == 201
        await until(lambda: len(rig.receiver.receipts) > 4)
        everything = await a_store(redis_client, namespace).contents()
        raw = b"".join(_bytes_in(everything))
        assert all(name in raw for name in (b"hook", b"account.baseline", b"attempt"))
        hidden += [
            base64.b64decode(one.partition("_")[2]).decode("latin-1") for one in hidden if "whsec_" in one
        ]
        assert [one for one in hidden if one.encode("latin-1") in raw] == []
        rig.receiver.fail = None
        rig.is_damaged = True  # what the file does not know cannot be audited


def _bytes_in(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes | str):
        yield value.encode() if isinstance(value, str) else value
    elif isinstance(value, dict):
        yield from _bytes_in([*value.items()])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _bytes_in(part)


async def test_one_request_creates_many_accounts(rig: Rig) -> None:
    async with a_worker(rig) as (_, api):
        good = [
            {"name": f"a{number}", "provider": "loopring", "account_id": number} for number in range(1, 400)
        ]
        body = b"\n".join(json.dumps(one).encode() for one in good)
        jsonl = [("content-type", "application/jsonl")]
        said = await ask(api, "POST", "/accounts:batch", body, headers=jsonl)
        assert said.status == 200
        lines = [json.loads(line) for line in said.raw.splitlines()]
        assert [(one["line"], one["status"], one["name"]) for one in lines] == [
            (number, 201, f"a{number}") for number in range(1, 400)
        ]
        odd = b'{"name": "b", "provider": "none"}\n\nnonsense\n{"name": "treasury"}\n'
        said = await ask(api, "POST", "/accounts:batch", odd + body.splitlines()[0], headers=jsonl)
        lines = [json.loads(line) for line in said.raw.splitlines()]
        assert [one["status"] for one in lines] == [422, 422, 409, 200]
        assert lines[0]["errors"][0]["pointer"] == "/provider"
        for many, status in ((b"{}\n" * 1001, 413), (b"{}" + b" " * 1024 * 1024, 413), (b"\n", 400)):
            assert (await ask(api, "POST", "/accounts:batch", many, headers=jsonl)).status == status


async def test_events_of_the_log_are_sent_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_worker(rig) as (_, api):
        async with asyncio.timeout(10):
            while not (await api.get("/accounts/treasury/balances")).data["polled_at"]:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        rig.sandbox.world.credit(10110, "LRC", 1)
        (event,) = await rig.events(1)
        sent = await ask(api, "POST", "/subscriptions/ops/resend", {"since": "1h"})
        assert (sent.status, sent.data["deliveries"], sent.data["dry_run"]) == (200, 1, False)
        await until(lambda: len(rig.receiver.receipts) == 2)
        tried = await ask(api, "POST", "/subscriptions/ops/resend", {"id": event["id"], "dry_run": True})
        assert (tried.data["deliveries"], tried.data["dry_run"]) == (1, True)
        assert (await ask(api, "POST", "/subscriptions/ops/resend", {"id": "evt_none"})).status == 404
        odd_rest = {"after": _after(Selection(since_ms=-1), Reached())}
        for odd in ({}, {"id": "a", "dead": True}, {"since": "soon"}, {"id": "a b"}, {"dead": 1}, odd_rest):
            assert (await ask(api, "POST", "/subscriptions/ops/resend", odd)).status == 422, odd
        preview = Selection(until_ms=MOST - 1, is_preview=True)
        for rest, count in ((Reached(is_log=True), 1), (Reached(is_log=True, shard=SHARDS), 0)):
            said = await ask(api, "POST", "/subscriptions/ops/resend", {"after": _after(preview, rest)})
            assert (said.status, said.data["deliveries"], said.data["next"]) == (200, count, None)
        monkeypatch.setattr(edits, "RESEND_S", 0)
        late = await ask(api, "POST", "/subscriptions/ops/resend", {"since": "1h"})
        assert (late.status, "use `watcher resend`" in late.data["detail"]) == (422, True)


async def test_a_ping_reports_its_result_and_verifies_a_url_that_answers(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "SPACING_MS", 1)
    async with a_worker(rig) as (_, api):
        body = {"url": rig.receiver.url, "secrets": [SECRET]}
        rig.receiver.fail = Fail(503, times=100)
        assert (await ask(api, "PUT", "/subscriptions/new", body)).status == 201
        said = (await ask(api, "POST", "/subscriptions/new/ping")).data
        assert (said["delivered"], said["verified"], said["status"]) == (False, False, 503)
        found = (await ask(api, "GET", "/subscriptions/new")).data
        assert (found["state"], found["status"]["ping_error"]) == ("unverified", "status 503")
        assert "`POST /v1/subscriptions/new/ping`" in found["status"]["todo"]
        rig.receiver.fail = None
        said = (await ask(api, "POST", "/subscriptions/new/ping")).data
        assert (said["delivered"], said["verified"], said["status"]) == (True, True, 200)
        found = (await ask(api, "GET", "/subscriptions/new")).data
        assert (found["state"], found["status"]["ping_error"]) == ("in_force", None)
        monkeypatch.setattr(verification, "SPACING_MS", 60_000)
        await ask(api, "POST", "/subscriptions/new/ping")
        limited = await ask(api, "POST", "/subscriptions/new/ping")
        assert (limited.status, int(limited.headers["retry-after"]) > 1) == (429, True)
        assert (await ask(api, "POST", "/subscriptions/none/ping")).status == 404
        assert (await ask(api, "POST", "/subscriptions/ops/ping")).status in (200, 429)


async def test_an_edit_that_outlives_its_request_is_logged(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    put_all = Directory.put_all

    async def slow(self: Directory, writes: Sequence[Write]) -> list[Written]:
        written = await put_all(self, writes)
        await asyncio.sleep(0.5)
        return written

    async with a_worker(rig) as (_, api):
        monkeypatch.setattr(server, "REQUEST_S", 0.2)
        monkeypatch.setattr(Directory, "put_all", slow)
        with capture_logs() as lines:
            with suppress(ClientError):  # the answer says that it took too long, or the connection is cut
                line = json.dumps({**BOB, "name": "bob"}).encode()
                await api.ask("POST", "/accounts:batch", data=line, headers={"content-type": LINES[0]})
            await until(lambda: [line for line in lines if line["event"] == "directory.changed"])


async def test_a_deleted_subscription_leaves_nothing_to_the_next_one_of_its_name(rig: Rig) -> None:
    async with a_worker(rig) as (_, api):
        rig.receiver.fail = Fail(410, times=10**6)
        body = {"url": rig.receiver.url, "secrets": [SECRET], "accounts": ["treasury"]}
        assert (await ask(api, "PUT", "/subscriptions/new", body)).status == 201

        async def queued_events() -> list[Any]:
            found: list[Any] = (await ask(api, "GET", "/subscriptions/new/deliveries")).data["items"]
            return found

        async with asyncio.timeout(10):
            for amount in range(1, 1000):
                rig.sandbox.world.credit(TREASURY, "ETH", amount)
                if len(await queued_events()) > 2:
                    break
                await asyncio.sleep(0.02)
        await ask(api, "POST", "/subscriptions/new/pause")
        assert (await ask(api, "DELETE", "/subscriptions/new")).status == 204
        await ask(api, "PUT", "/subscriptions/new", {**body, "accounts": ["alice"]})
        assert await queued_events() == []
        shown = (await ask(api, "GET", "/subscriptions/new")).data
        assert (shown["state"], shown["status"]["state"]) == ("unverified", "healthy")
        rig.receiver.fail = None


async def test_deliveries_that_wait_for_a_deleted_subscription_are_removed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "FOLLOWED_S", 0)
    async with a_worker(rig) as (worker, api):
        rig.receiver.fail = Fail(410, times=10**6)
        body = {"url": rig.receiver.url, "secrets": [SECRET], "accounts": ["treasury"]}
        await ask(api, "PUT", "/subscriptions/new", body)
        rig.sandbox.world.credit(TREASURY, "ETH", 5)
        async with asyncio.timeout(10):
            while not (await api.get("/subscriptions/new/deliveries")).data["items"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await ask(api, "DELETE", "/subscriptions/new")
        assert worker.opened
        reader = Reader(worker.opened.schedule.pipe, Keys(rig.settings.redis.namespace))
        async with asyncio.timeout(10):
            while "new" in await reader.owed_subscriptions():  # noqa: ASYNC110 - a worker takes it away
                await asyncio.sleep(0.02)
        rig.receiver.fail = None


async def test_the_document_names_every_endpoint_and_nothing_else(rig: Rig) -> None:
    async with a_worker(rig) as (_, api):
        said = await ask(api, "GET", "/openapi.json")
        document = said.data
        again = await api.ask("GET", "/openapi.json", headers={"if-none-match": said.headers["etag"]})
        other = await api.ask("GET", "/openapi.json", headers={"if-none-match": '"1"'})
        assert (again.status, again.raw, other.status) == (304, b"", 200)
        served = (await ask(api, "GET", "/")).data
        served = {(path, method) for path, methods in served.items() for method in methods}
        described = {(path, method.upper()) for path, one in document["paths"].items() for method in one}
        assert described == served - {("/v1/openapi.json", "GET")}
        account = document["components"]["schemas"]["LoopringAccount"]
        assert account["properties"]["provider"]["enum"] == ["loopring"]
