"""The page over real sockets: what it may do in a browser, who gets it, and that it is true."""

import asyncio
import json
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.resources import files
from typing import Any

import pytest
from pydantic import SecretStr

from tests.observe.browser import PROGRAM, Browser, a_browser
from tests.support.builders import a_balance, a_row, a_snapshot, an_account
from tests.support.directory import Programs, with_key
from tests.support.rig import Rig, a_rig
from tests.support.scraped import get, said
from tests.support.servers import real_server
from tests.support.stores import pause
from tests.support.stories import MINUTE_MS, Books, steps
from watcher.amounts import to_atoms
from watcher.api.access import Address
from watcher.api.server import Listener
from watcher.encryption import new_key
from watcher.journal.events import Delivery
from watcher.observe import views
from watcher.observe.metrics import Metrics
from watcher.observe.page import document, look
from watcher.observe.page.look import Look, routes
from watcher.receiver import Fail
from watcher.run.worker import Opened, Worker
from watcher.snapshot import Asset, Snapshot
from watcher.store.client import connect
from watcher.store.directory import Directory
from watcher.store.exceptions import StoreRefuses
from watcher.store.health import StoreHealth
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe
from watcher.store.queues import Breaker, Breakers, Queues

HTML = files("watcher.observe.page").joinpath("page.html").read_text("utf-8")
TOKEN = "a-token-of-some-length"
HOSTILE = "<img src=x onerror=window.pwned=1>"
BIDI = "\u202emoc.live\u202c\x1b[31m\x00"
LONG = "<script>pwned=1</script>" + "W" * 176


@pytest.fixture(autouse=True)
def _always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_FRESH_S", 0.0)
    monkeypatch.setattr(look, "FRESH_S", 0.0)


@asynccontextmanager
async def a_page(worker: Worker, token: str | None = None) -> AsyncIterator[int]:
    async with Listener(Address("127.0.0.1", 0), routes(worker), token=token) as listener:
        yield listener.address.port


@asynccontextmanager
async def some_books(rig: Rig, *names: str) -> AsyncIterator[tuple[Books, Worker]]:
    """A namespace to write into, and a worker with an open store that polls nothing."""
    accounts = {name: an_account(name) for name in names or ("treasury",)}
    settings = rig.settings.model_copy(update={"account_by_name": accounts})
    async with connect(settings.redis.url.get_secret_value()) as client:
        books = Books(Pipe(client), settings.redis.namespace)
        await books.schedule.read_clock()
        worker = Worker(settings, name="w")
        worker.opened = Opened(books.schedule, StoreHealth())
        yield books, worker


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        rig.is_damaged = True  # accounts of one minute that were read at another time
        yield rig


async def summary(worker: Worker) -> Any:
    return json.loads(await Look(worker).json())


def hostile(total: str) -> Snapshot:
    rows = {
        name: a_row(Asset(name, symbol, title, 0), a_balance(total, "1", "2", None))
        for name, symbol, title in (("1", HOSTILE, BIDI), ("2", BIDI, LONG), (HOSTILE, None, HOSTILE))
    }
    return Snapshot(rows, None, absent_is_zero=True)


# what it may do


def test_nothing_from_outside_can_become_markup_or_script() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc"
    )
    assert re.findall(forbidden, HTML) == []
    assert re.findall(r"\son[a-z]+\s*=", HTML) == []
    assert re.findall(r"\bstyle=|<link|<iframe|@import|url\(|javascript:", HTML) == []
    assert set(re.findall(r"https?://[^\s\"']+", HTML)) == {"http://www.w3.org/2000/svg"}


async def test_the_content_security_policy_allows_only_the_scripts_of_the_file(rig: Rig) -> None:
    async with some_books(rig) as (_, worker), a_page(worker) as port:
        answer = await get(port, "/")
        raw = await said(port, f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    hashes = [
        b64encode(sha256(re.findall(rf"<{name}>(.*?)</{name}>", answer.body, re.DOTALL)[0].encode()).digest())
        for name in ("script", "style")
    ]
    assert (
        f"content-security-policy: default-src 'none'; script-src 'sha256-{hashes[0].decode()}'; "
        f"style-src 'sha256-{hashes[1].decode()}'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'\r\n"
    ) in raw.decode()
    assert answer.body == HTML
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


# access


@pytest.mark.parametrize("path", ["/", "/page.json"])
async def test_a_request_by_rebinding_or_without_the_token_gets_nothing(rig: Rig, path: str) -> None:
    async with some_books(rig) as (_, worker), a_page(worker) as port:
        led = await said(port, f"GET {path} HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n".encode())
    async with some_books(rig) as (_, worker), a_page(worker, TOKEN) as port:
        nobody = await get(port, path)
        password = b64encode(f"me:{TOKEN}".encode()).decode()
        person = await get(port, path, f"Authorization: Basic {password}")
    assert led.startswith(b"HTTP/1.1 421 ")
    assert (nobody.status, person.status) == (401, 200)


# content


async def test_the_page_shows_balances_with_their_past_pending_changes_and_the_result_of_events(
    rig: Rig,
) -> None:
    async with some_books(rig) as (books, worker):
        now_ms = books.schedule.now_ms()
        await books.live(
            [
                a_snapshot(LRC=a_balance("100", pending_deposit="12.5"), ETH="5"),
                a_snapshot(LRC=a_balance("112.5"), ETH="5"),
                a_snapshot(LRC=a_balance("112.5", pending_deposit="5"), ETH="4"),
                a_snapshot(LRC=a_balance("112.5"), ETH="0"),
            ],
            at_ms=now_ms - 3 * MINUTE_MS,
        )
        seen = (await summary(worker))["seen"]
    (treasury,) = seen["accounts"]["shown"]
    assert sorted(treasury["problems"]) == ["pending confirmation", "suspect"]
    row_by_asset = {row["asset"]["id"]: row for row in treasury["balances"]}
    assert row_by_asset["LRC"]["pending_confirmation"]["pending_deposit"] == "-5"
    assert row_by_asset["ETH"]["suspect"]["total"] == "0"
    assert [total for _, total in row_by_asset["LRC"]["curve"]][-1] == "112.5"
    assert row_by_asset["LRC"]["curve"][0][1] == "100"
    assert row_by_asset["ETH"]["curve"][0][1] == "5"
    assert [event["type"] for event in seen["events"]] == [
        "deposit.pending",
        "total.decreased",
        "deposit.cleared",
    ]
    assert seen["events"][2]["before"]["total"] == "100"
    assert seen["events"][0]["deliveries"] == [{"subscription": "ops", "state": "waiting", "attempts": []}]
    assert seen["health"]["problems"] == [
        {"state": "waiting", "text": "1 subscription delayed"},
        {"state": "waiting", "text": "1 account suspect"},
    ]


async def test_the_page_shows_failed_attempts_and_the_one_that_delivered(rig: Rig) -> None:
    rig.is_damaged = False
    rig.receiver.fail = Fail(500, 2)
    async with rig.worker() as worker:
        async with asyncio.timeout(20):
            while "loopring" not in {provider for provider, _ in worker.counters.by_poll}:  # noqa: ASYNC110 - no subscription gets its baseline
                await asyncio.sleep(0.01)
        rig.sandbox.world.credit(10110, "ETH", 3)
        await rig.events(1, within_s=20)
        delivery = await delivered(worker)
        rig.receiver.fail = None
        rig.sandbox.world.credit(10110, "ETH", 4)
        await rig.events(2, within_s=20)
        async with asyncio.timeout(20):
            while not (at_once := await delivered(worker, 2))["attempts"]:  # it is settled, then remembered
                pass
        (ops,) = (await summary(worker))["seen"]["subscriptions"]["shown"]
        worker.counters.delivered.clear()
        elsewhere = await delivered(worker, 2)
    assert [attempt["status"] for attempt in delivery["attempts"]][:2] == [500, 500]
    assert delivery["attempts"][-1]["outcome"] == "delivered"
    assert [(one["attempt"], one["status"]) for one in at_once["attempts"]] == [(1, 200)]
    assert (elsewhere["state"], elsewhere["attempts"]) == ("delivered", [])
    assert (ops["last_attempt"]["status"], ops["last_attempt"]["outcome"]) == (200, "delivered")


async def delivered(worker: Worker, count: int = 1) -> Any:
    """The delivery of the latest of so many events, once it is over."""
    async with asyncio.timeout(20):
        while True:
            events = (await summary(worker))["seen"]["events"]
            if len(events) == count and all(one["deliveries"] for one in events):
                (delivery,) = events[0]["deliveries"]
                if delivery["state"] == "delivered":
                    return delivery


async def test_the_page_shows_entries_of_the_api_and_what_keeps_them_from_working(rig: Rig) -> None:
    rig.sandbox.world.open_account(10112, ETH="1")
    async with rig.worker(with_key(rig.settings)) as worker:
        async with asyncio.timeout(20):
            while not worker.has_begun or worker.followed is None or worker.opened is None:  # noqa: ASYNC110 - it has no signal
                await asyncio.sleep(0.01)
        namespace = rig.settings.redis.namespace
        directory = Directory(worker.opened.schedule.pipe, Keys(namespace))
        ours, others = Programs(directory, namespace), Programs(directory, namespace, new_key())
        await ours.put_account("carol", "loopring", account_id=10112)
        await ours.put_account("treasury", "loopring", account_id=10112)
        await ours.put_subscription("customer", "https://hooks.example.com/in", is_verified=False)
        await ours.put_subscription("ops", "https://hooks.example.com/in")
        await others.put_subscription("encrypted", "https://hooks.example.com/in")
        breakers = Breakers(worker.opened.schedule.pipe, Keys(namespace))
        await breakers.change("customer", lambda _, __: Breaker(ping_error="status 404"))
        await worker.followed.follow_now()
        seen = (await summary(worker))["seen"]
    record_by_account = {one["account"]: one["record"] for one in seen["accounts"]["shown"]}
    assert record_by_account == {"treasury": "shadowed", "alice": "file", "carol": "in_force"}
    shown = {one["subscription"]: one for one in seen["subscriptions"]["shown"]}
    records = {name: one["record"] for name, one in shown.items()}
    assert records == {"customer": "unverified", "ops": "shadowed", "encrypted": "locked"}
    assert "key" in shown["encrypted"]["record_reason"]
    assert shown["customer"]["ping_error"] == "status 404"
    assert re.match("look at the path .*; `watcher ping customer` shows", shown["customer"]["todo"])
    counts = {
        "accounts": 2,
        "subscriptions": 3,
        "unverified": 1,
        "locked": 1,
        "unfit": 0,
        "shadowed": 2,
        "older_key": 0,
    }
    assert seen["directory"] == counts
    assert {"1 record of the API unverified", "1 record of the API locked"} <= {
        one["text"] for one in seen["health"]["problems"]
    }


async def test_an_event_deep_in_a_queue_is_shown_as_not_looked_up(rig: Rig) -> None:
    async with some_books(rig, "treasury", "alice") as (books, worker):
        at_ms = books.schedule.now_ms() - 90 * MINUTE_MS
        await books.live([a_snapshot(ETH=str(number)) for number in range(1, 62)], at_ms=at_ms)
        await books.live([a_snapshot(ETH="1"), a_snapshot(ETH="2")], "alice", at_ms=at_ms)
        events = (await summary(worker))["seen"]["events"]
    states = [
        one["state"] for event in events if event["account"] == "treasury" for one in event["deliveries"]
    ]
    assert (states[0], states[-1]) == ("may wait", "waiting")
    (of_alice,) = (event for event in events if event["account"] == "alice")
    assert [one["state"] for one in of_alice["deliveries"]] == ["waiting"]


async def test_problems_that_only_a_person_can_fix_are_listed_first(rig: Rig) -> None:
    refusals = {
        "loopring": ["rate over the rate limit (429)", "gone the provider is unavailable"],
        "shop": ["gone the provider is unavailable", "gone the provider is unavailable", "auth a wrong key"],
    }
    async with some_books(rig) as (books, worker):
        for provider, whys in refusals.items():
            for number, why in enumerate(whys):
                lease = await books.lease(f"a{number}", provider)
                await books.polls.postpone(provider, lease, why=why, at_least_ms=0, waits_ms=[99_000])
        shop, loopring = (await summary(worker))["seen"]["providers"]["shown"]
    assert (shop["provider"], loopring["provider"]) == ("shop", "loopring")
    assert (shop["errors"][0]["reason"], shop["errors"][0]["todo"]) == (
        "a wrong key",
        "fix the key in [providers.shop]",
    )
    assert {found["error_class"]: bool(found["todo"]) for found in loopring["errors"]} == {
        "rate": True,
        "gone": False,
    }


async def test_only_the_origin_of_a_url_is_shown_and_no_secret_in_reasons(rig: Rig) -> None:
    ops = rig.settings.subscription_by_name["ops"].model_copy(
        update={"url": SecretStr("https://user:canaryOne@ops.example.com/in/canaryTwo?token=canaryThree")}
    )
    rig.settings = rig.settings.model_copy(update={"subscription_by_name": {"ops": ops}})
    async with some_books(rig) as (books, worker):
        await pause(Breakers(books.pipe, books.keys), "ops", "by \x1b[31mhand")
        body = (await Look(worker).json()).decode()
    assert "canary" not in body
    (line,) = json.loads(body)["seen"]["subscriptions"]["shown"]
    assert (line["place"], line["state"]) == ("https://ops.example.com", "paused")
    assert line["reason"] == "by \\x1b[31mhand"


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 200 accounts and 500 balances at most."""
    monkeypatch.setattr(document, "MOST_ACCOUNTS", 200)
    monkeypatch.setattr(document, "MOST_BALANCES", 500)


@pytest.mark.usefixtures("_small")
async def test_the_document_stays_small_and_says_what_it_leaves_out(rig: Rig) -> None:
    names = [f"account-{number}" for number in range(document.MOST_ACCOUNTS + 50)]
    many = a_snapshot({f"token-{number}": str(number) for number in range(document.MOST_OF_AN_ACCOUNT + 9)})
    async with some_books(rig, *names) as (books, worker):
        for name in names[:12]:
            await books.live(
                [many, a_snapshot({"token-0": "7"})], name, at_ms=books.schedule.now_ms() - 61_000
            )
        body = await Look(worker).json()
    seen = json.loads(body)["seen"]
    accounts = seen["accounts"]
    assert len(body) < 1_000_000
    assert (len(accounts["shown"]), accounts["left_out"]) == (document.MOST_ACCOUNTS, 50)
    assert sum(len(one["balances"]) for one in accounts["shown"]) == document.MOST_BALANCES
    assert all(len(one["balances"]) + one["left_out"] in (0, 59) for one in accounts["shown"])
    assert len(seen["events"]) <= look.MOST_EVENTS


async def test_of_many_subscriptions_those_with_something_to_show_are_shown_and_others_counted(
    rig: Rig,
) -> None:
    ops = rig.settings.subscription_by_name["ops"]
    names = [f"s-{number}" for number in range(document.MOST_SUBSCRIPTIONS + 150)]
    async with some_books(rig) as (books, worker):
        many = {name: ops.model_copy(update={"name": name}) for name in names}
        settings = worker.settings.model_copy(update={"subscription_by_name": many})
        worker = Worker(settings, name="w")
        worker.opened = Opened(books.schedule, StoreHealth())
        queues = Queues(books.schedule, books.keys)
        await queues.enqueue("s-240", "treasury", [Delivery("evt_1", "total.increased", 1, b"{", "s-240")])
        await pause(Breakers(books.pipe, books.keys), "s-245", "status 410")
        seen = (await summary(worker))["seen"]
    shown = seen["subscriptions"]["shown"]
    assert [one["subscription"] for one in shown[:3]] == ["s-245", "s-240", "s-0"]
    assert (len(shown), seen["subscriptions"]["left_out"]) == (document.MOST_SUBSCRIPTIONS, 150)
    texts = [one["text"] for one in seen["health"]["problems"]]
    assert {"1 subscription paused", "1 subscription delayed"} <= {*texts}


async def test_many_viewers_read_redis_no_more_than_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "FRESH_S", 60.0)
    async with some_books(rig) as (books, worker):
        one = Look(worker)
        await one.json()
        before = await calls(books)
        await asyncio.gather(*(one.json() for _ in range(50)))
        assert await calls(books) - before <= 2  # this very question


async def calls(books: Books) -> int:
    info = await books.pipe.command("INFO", "stats")
    return int(re.findall(rb"total_commands_processed:([0-9]+)", info)[0])


async def test_while_redis_is_unreachable_the_page_says_so_and_keeps_what_it_read(namespace: str) -> None:
    with real_server() as server:
        async with a_rig(server.url, namespace) as rig:
            rig.is_damaged = True
            async with some_books(rig) as (books, worker):
                await books.live([a_snapshot(ETH="5")])
                one = Look(worker)
                before = json.loads(await one.json())
                server.kill()
                started = time.monotonic()
                after = json.loads(await one.json())
    assert before["error"] is None
    assert (
        after["error"] == "Redis does not answer in time: while it does not, nothing is polled or delivered"
    )
    assert after["seen"] == before["seen"]
    assert after["age_s"] > before["age_s"]
    assert time.monotonic() - started < look.TIMEOUT_S + 5


async def test_the_backlog_of_a_removed_subscription_is_shown(rig: Rig) -> None:
    async with some_books(rig) as (books, worker):
        queues = Queues(books.schedule, books.keys)
        await queues.enqueue("left", "treasury", [Delivery("evt_1", "total.increased", 1, b"{", "left")])
        seen = (await summary(worker))["seen"]
        metrics = (await Metrics(worker).text()).decode()
    left, ops = sorted(seen["subscriptions"]["shown"], key=lambda line: line["is_configured"])
    assert (left["subscription"], left["deliveries"], ops["subscription"]) == ("left", 1, "ops")
    assert "1 subscription not in the configuration" in [one["text"] for one in seen["health"]["problems"]]
    assert 'watcher_queues_waiting{subscription="ops"} 0.0' in metrics
    assert "left" not in metrics


async def test_a_provider_whose_rate_limit_is_too_low_is_named_with_its_rates(rig: Rig) -> None:
    shop = rig.settings.provider_by_name["shop"].model_copy(update={"requests_per_second": 0.001})
    providers = {**rig.settings.provider_by_name, "shop": shop}
    async with rig.worker(rig.settings.model_copy(update={"provider_by_name": providers})) as worker:
        async with asyncio.timeout(20):
            while not (worker.has_begun and (seen := (await summary(worker))["seen"])):  # noqa: ASYNC110 - it has no signal
                await asyncio.sleep(0.01)
    (line,) = [one for one in seen["providers"]["shown"] if one["too_few_requests"]]
    assert (line["provider"], line["requests_per_second"]) == ("shop", 0.001)
    assert line["needed_per_second"] > 0.001
    assert f"shop: {views.TOO_FEW}" in [one["text"] for one in seen["health"]["problems"]]


async def test_the_page_shows_how_full_redis_is_and_why_it_refuses_writes(namespace: str) -> None:
    with real_server("valkey") as server:
        async with a_rig(server.url, namespace) as rig, some_books(rig) as (_, worker):
            rig.is_damaged = True
            assert worker.opened
            pipe = worker.opened.schedule.pipe
            await worker.opened.health.judge(pipe)
            ratio = re.compile(rb"^watcher_store_memory_ratio (\S+)", re.MULTILINE)
            assert ratio.findall(await Metrics(worker).text()) == []
            (client,) = await pipe.servers()
            await client.set("of-another-program", b"x" * 20_000_000)
            used = (await client.info("memory"))["used_memory"]
            await client.config_set("maxmemory", int(used / 0.9))
            line = (await summary(worker))["seen"]["server"]
            assert 0.87 < line["used_bytes"] / line["limit_bytes"] < 0.93
            assert " % of its memory is used (" in line["warnings"][0]
            (found,) = ratio.findall(await Metrics(worker).text())
            assert 0.87 < float(found) < 0.93
            await client.config_set("maxmemory", 0)
            refused = StoreRefuses("Redis at db refuses writes (OOM): its memory is full")
            await worker.opened.health.failed(refused)
            after = await summary(worker)
    assert after["error"].startswith(f"{refused}: until then nothing is polled, and ")
    assert after["seen"] is None, "another look has seen nothing yet"


async def test_new_events_are_added_without_reading_older_ones_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with some_books(rig) as (books, worker):
        one, now_ms = Look(worker), books.schedule.now_ms()
        made = await books.live([a_snapshot(ETH="5"), a_snapshot(ETH="6")], at_ms=now_ms - 2 * MINUTE_MS)
        first = json.loads(await one.json())["seen"]
        monkeypatch.setattr(look.Recent, "_begin", None)
        (step,) = steps([a_snapshot(ETH="8")], state=made[-1].state, at_ms=now_ms)
        await books.commit(step, expected=made[-1].state.version)
        second = json.loads(await one.json())["seen"]
    assert [event["amount"] for event in first["events"]] == ["1"]
    assert [event["amount"] for event in second["events"]] == ["2", "1"]
    (row,) = second["accounts"]["shown"][0]["balances"]
    assert [total for _, total in row["curve"]][-1] == "8"
    assert to_atoms(row["total"]) == to_atoms("8")


async def test_a_read_that_takes_too_long_is_left_out_and_the_page_says_since_when_it_knows(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "LONGEST_S", 0.0)
    async with some_books(rig) as (books, worker):
        now_ms = books.schedule.now_ms()
        await books.live([a_snapshot(ETH=str(number)) for number in range(1, 9)], at_ms=now_ms - MINUTE_MS)
        seen = (await summary(worker))["seen"]
    assert [event["amount"] for event in seen["events"]] == ["1"], "the latest"
    (account,) = seen["accounts"]["shown"]
    assert [total for _, total in account["balances"][0]["curve"]] == ["7", "8"]
    assert account["since_ms"] == seen["events"][0]["at_ms"]


# in a browser


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
async def test_in_a_browser_hostile_text_shows_as_text_and_nothing_runs(rig: Rig) -> None:
    async with some_books(rig, "treasury") as (books, worker):
        await books.live([hostile("5"), hostile("9")], at_ms=books.schedule.now_ms() - MINUTE_MS)
        async with a_page(worker) as port, a_browser() as browser:
            await browser.open(f"http://127.0.0.1:{port}/", width=360, height=780, scheme="dark")
            await browser.until("document.querySelectorAll('.balance').length === 3")
            shown = await browser.value("document.body.textContent")
            assert HOSTILE in shown
            assert "\\u202emoc.live\\u202c\\x1b[31m\\x00" in shown
            assert "<script>pwned=1</script>WWW" in shown
            assert await browser.value("typeof pwned") == "undefined"
            assert await browser.value("document.querySelectorAll('img').length") == 0
            assert await browser.value("document.documentElement.scrollWidth <= 360")
            assert await browser.value("document.querySelectorAll('svg path').length") == 6
            for grouping in ("asset", "provider", "account"):
                one = f"const one = document.getElementById('grouping'); one.value = '{grouping}';"
                await browser.value(f"(() => {{ {one} one.dispatchEvent(new Event('change')); }})()")
                await browser.until("document.querySelectorAll('.balance').length === 3")
                await browser.value("document.querySelector('.balance button').click()")
                await browser.until("document.getElementById('detail').open")
                assert await browser.value("document.querySelectorAll('img').length") == 0
                assert await browser.value("document.documentElement.scrollWidth <= 360")
                await browser.value("document.getElementById('detail').close()")
            await opened(browser)
            worker.opened = None
            await browser.value("look()")
            await browser.until("!document.getElementById('alarm').hidden")
            assert "contact with Redis" in await browser.value("document.getElementById('alarm').textContent")
            assert HOSTILE in await browser.value("document.body.textContent")
            assert browser.complaints == []


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
async def test_in_a_browser_nothing_unread_is_called_healthy_or_delivered(rig: Rig) -> None:
    async with (
        some_books(rig, "treasury", "alice") as (books, worker),
        a_page(worker) as port,
        a_browser() as browser,
    ):
        await browser.open(f"http://127.0.0.1:{port}/", width=390, height=844)
        assert await state_of(browser, "not read yet") == "2 accounts not read yet"
        now_ms = books.schedule.now_ms()
        await books.live(
            [a_snapshot(ETH=str(number)) for number in range(1, 62)], at_ms=now_ms - 60 * MINUTE_MS
        )
        await browser.value("look()")
        await browser.until("document.querySelectorAll('.event').length === 6")
        await browser.value("document.getElementById('all-events').click()")
        await browser.until("document.querySelectorAll('.event').length === 50")
        fates = await browser.value("[...document.querySelectorAll('.chips')].map((one) => one.textContent)")
        assert (fates[0], fates[-1]) == ("may wait → ops", "… waiting → ops")
        await browser.value("document.querySelector('details summary').click()")
        facts = await browser.value("document.querySelector('details dl').innerText")
        assert "its queue is too long for this page" in facts
        assert "watcher deliveries --account treasury" in facts
        await browser.value("document.querySelector('nav a[href=\"#h-providers\"]').click()")
        await browser.until(
            "document.getElementById('h-providers').getBoundingClientRect().top < innerHeight"
        )
        assert browser.complaints == []


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
async def test_in_a_browser_with_too_many_accounts_the_head_counts_only_those_it_read(rig: Rig) -> None:
    names = [f"account-{number}" for number in range(document.MOST_ACCOUNTS + 1)]
    async with some_books(rig, *names) as (_, worker), a_page(worker) as port, a_browser() as browser:
        await browser.open(f"http://127.0.0.1:{port}/")
        assert await state_of(browser, "not read yet") == "at least 200 accounts not read yet"


async def state_of(browser: Browser, words: str) -> object:
    """The text of the page's head, once it contains these words."""
    await browser.until(f"document.getElementById('state')?.textContent.includes({words!r})")
    return await browser.value("document.getElementById('state').textContent")


async def opened(browser: Browser) -> None:
    """Open the latest event, and see that it stays open when the page looks again."""
    await browser.value("document.querySelector('details summary').click()")
    await browser.value("window.answers = 0; const f = fetch; fetch = (...a) => (answers += 1, f(...a))")
    await browser.until("answers >= 1 && document.querySelector('details').open")
    assert "effect" in await browser.value("document.querySelector('details dl').innerText")
