"""The commands around deliveries, as a shell would run them: ping, subscriptions, deliveries, resend."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis
from yarl import URL

from tests.delivery.staged_subscriber import (
    Backlogs,
    CommandLine,
    StagedSubscriber,
    a_sample,
    backlogs_of,
    lines_of,
    some_settings,
)
from tests.support.builders import seconds
from tests.support.events_schema import assert_valid
from tests.support.raw_subscribers import OK, Peer, subscribing
from tests.support.rig import TREASURY, Rig, a_rig
from tests.support.stores import fail, pause
from tests.support.stories import a_ms_later
from watcher import cli
from watcher.commands.deliveries import cells
from watcher.delivery import sink, webhook
from watcher.delivery.sink import Attempt, remedy
from watcher.engine.breaker import Answer
from watcher.journal.events import Delivery
from watcher.printable import plain
from watcher.schema import MODEL_BY_TYPE
from watcher.store.history import History
from watcher.store.keys import shard_of

pytest_plugins = ("tests.delivery.subscribers",)

HOSTILE = "\x1b]0;owned\x07\u202e"
NOBODY = "http://127.0.0.1:1999/"
REFUSED = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Workers in this process log nothing into a command's output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read or written in parts takes several of them."""
    monkeypatch.setattr("watcher.store.reader._DEAD_LETTERS_PAGE", 2)
    monkeypatch.setattr("watcher.store.reader._DELIVERIES_PAGE", 2)
    monkeypatch.setattr("watcher.delivery.resend._AT_ONCE", 2)


@pytest.fixture
def one(redis_client: Redis, redis_server_url: str, namespace: str, subscriber: StagedSubscriber) -> Backlogs:
    return backlogs_of(redis_client, redis_server_url, namespace, ops=subscriber.url, audit=NOBODY)


@pytest.fixture
def run(one: Backlogs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(one.settings, tmp_path / "watcher.toml", capsys)


async def given_up(
    one: Backlogs, account: str, *numbers: int, to: str = "ops", reason: str = "status 400"
) -> None:
    """Let deliveries become dead letters, later than all before them."""
    await a_ms_later(one.pipe)
    await one.queue([account], numbers, to=to)
    key = one.keys.queues(shard_of(account), to)
    claimed = await one.queues.claim(to, shard_of(account), lease_ms=60_000, at_most=9)
    (lease,) = [lease for lease in claimed.leases if lease.member == account]
    for number in numbers:
        head = a_sample(account, number, to).entry
        _, deadline = await one.queues.dead(
            to, lease, head, until=one.queues.until(lease, 60_000), reason=reason
        )
        lease = lease._replace(deadline=deadline)
    assert await one.pipe.command("ZSCORE", key, account) is None


async def a_dead_letter_in(
    one: Backlogs, shard: int, delivery: Delivery, account: str, *, at: str = "*"
) -> None:
    """Put a dead letter of `ops` into a shard, with its body."""
    reference, _, _ = delivery.entry.rpartition(b" ")
    await one.pipe.command("HSET", one.keys.bodies(shard), reference, b"1 " + delivery.stored)
    said = ("account", account, "reason", "no", "delivery", delivery.entry)
    await one.pipe.command("XADD", one.keys.dead(shard, "ops"), at, *said)


# ping


@pytest.fixture
def alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], subscriber: StagedSubscriber) -> CommandLine:
    """A command line without any Redis."""
    settings = some_settings("redis://127.0.0.1:1", "nowhere", {"ops": {"url": subscriber.url}})
    return CommandLine(settings, tmp_path / "alone.toml", capsys)


async def test_a_ping_is_a_signed_sample_and_each_is_another_event(
    alone: CommandLine, subscriber: StagedSubscriber
) -> None:
    subscriber.status = 204
    ended = [await alone("ping", "ops") for _ in range(2)]
    assert [(each.code, each.err) for each in ended] == [(0, "")] * 2
    assert ended[0].out.startswith("ops: answered 204, after ")
    for arrival in subscriber.arrivals:
        assert_valid(arrival.body)
        assert (arrival.event["type"], arrival.attempt) == ("subscription.ping", 1)
        assert arrival.event["data"]["account"] is None
        assert set(arrival.event["data"]["effect"].values()) == {"0"}
        assert arrival.event["subscription"] == {"name": "ops", "previous_sequence": None}
    assert len({arrival.event["id"] for arrival in subscriber.arrivals}) == 2


@pytest.mark.parametrize("type_", MODEL_BY_TYPE)
async def test_a_ping_may_be_of_any_event_type(
    alone: CommandLine, subscriber: StagedSubscriber, type_: str
) -> None:
    ended = await alone("ping", "ops", "--event", type_)
    assert (ended.code, ended.err) == (0, "")
    (arrival,) = subscriber.arrivals
    assert_valid(arrival.body)
    assert arrival.event["type"] == type_


async def test_a_mistyped_event_type_is_answered_with_the_nearest_one(
    alone: CommandLine, subscriber: StagedSubscriber
) -> None:
    ended = await alone("ping", "ops", "--event", "deposit.clear")
    assert (ended.code, subscriber.arrivals) == (2, [])
    assert ended.err == "Error: no type of event is called 'deposit.clear'; did you mean 'deposit.cleared'?\n"


@pytest.mark.parametrize("status", [301, 400, 401, 404, 410, 418, 429, 500, 503])
async def test_a_ping_that_is_refused_says_why_and_what_to_do(
    alone: CommandLine, subscriber: StagedSubscriber, status: int
) -> None:
    subscriber.status = status
    ended = await alone("ping", "ops")
    assert ended.code == 1
    said = ended.out.splitlines()
    assert said[0].startswith(f"ops: answered {status}, after ")
    assert said[1:2] == ["  it says: what it says"]
    assert said[2].startswith("  what to do: ")
    assert ("redirects are not followed" in said[2]) == (status == 301)
    assert "t0ken" not in ended.out


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (NOBODY, "cannot connect"),
        ("https://does-not-exist.invalid/", "does not resolve"),
        ("https://127.0.0.1:1999/", "cannot connect"),
    ],
)
async def test_a_ping_that_does_not_arrive_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, said: str
) -> None:
    settings = some_settings("embedded", "nowhere", {"ops": {"url": url}})
    ended = await CommandLine(settings, tmp_path / "watcher.toml", capsys)("ping", "ops")
    assert ended.code == 1
    assert said in ended.out
    assert re.search(r"what to do: (look|check) ", ended.out)
    assert not (tmp_path / ".watcher").exists()


async def test_a_ping_is_refused_where_a_delivery_would_be(
    alone: CommandLine, subscriber: StagedSubscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    from watcher.delivery.egress import Policy

    monkeypatch.setattr(Policy, "verdict", lambda _self, _address: "loopback address")
    monkeypatch.setattr(webhook, "check_url", lambda text, _policy: URL(text))
    monkeypatch.setattr("watcher.config.subscriptions.check_url", lambda *_: None)
    ended = await alone("ping", "ops")
    assert (ended.code, subscriber.arrivals) == (1, [])
    assert "refused: loopback address" in ended.out
    assert "[egress] allow" in ended.out


def test_advice_fits_the_answer_of_the_attempt() -> None:
    said = [*(words for _, words in webhook._WORDS), "no connection within 20 s", "no answer within 20 s"]
    for words, advice in sink._BY_ERROR:
        (found, *_) = [each for each in said if words in each]
        assert remedy(Attempt(Answer.NO_ANSWER, 0, error=found), is_signed=True) == advice
    assert remedy(Attempt(Answer.NO_ANSWER, 0, error="something new"), is_signed=True).startswith(
        "look at the receiver"
    )
    assert remedy(Attempt(Answer.REJECTED, 0, status=101), is_signed=True) == "it is not a webhook receiver"
    for status, begin in (
        (429, "it accepts no more"),
        (500, "the service itself"),
        (418, "look at the subs"),
    ):
        refused = Attempt(Answer.REJECTED, 0, status=status)
        assert remedy(refused, is_signed=False).startswith(begin)


# what all of them share


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ping", ("opps",)),
        ("ping", ("opps", "--event", "deposit.cleared")),
        ("deliveries", ("--subscription", "opps")),
        ("subscriptions", ("pause", "opps")),
        ("subscriptions", ("resume", "opps")),
        ("resend", ("--dead", "--subscription", "opps")),
    ],
)
async def test_a_mistyped_name_is_answered_with_the_nearest_one(
    run: CommandLine, name: str, arguments: tuple[str, ...]
) -> None:
    ended = await run(name, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith("called 'opps'; did you mean 'ops'?\n")
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("subscriptions", ("pause",)),
        ("subscriptions", ("list", "ops")),
        ("subscriptions", ("stop", "ops")),
        ("deliveries", ("--subscription", "x*")),
        ("deliveries", ("--limit", "0")),
        ("deliveries", ("give-up",)),
        ("deliveries", ("list", "evt_1")),
        ("resend", ()),
        ("resend", ("--dead",)),
        ("resend", ("--since", "1h")),
        ("resend", ("evt_1", "--dead", "--subscription", "ops")),
        ("resend", ("evt_1", "--since", "1h")),
        ("resend", ("--since", "yesterday", "--subscription", "ops")),
    ],
)
async def test_contradictory_arguments_are_a_usage_error(
    run: CommandLine, name: str, arguments: tuple[str, ...]
) -> None:
    ended = await run(name, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Error: " in ended.err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("subscriptions", ()),
        ("deliveries", ()),
        ("deliveries", ("give-up", "evt_1")),
        ("resend", ("evt_1",)),
        ("subscriptions", ("pause", "ops")),
    ],
)
async def test_without_a_server_the_commands_exit_with_69(
    alone: CommandLine, name: str, arguments: tuple[str, ...]
) -> None:
    ended = await alone(name, *arguments)
    assert (ended.code, ended.out) == (69, "")
    assert ended.err.startswith("watcher: ")


def test_the_commands_are_in_the_help() -> None:
    assert {"deliveries", "subscriptions"} <= set(cli.COMMANDS_BY_PURPOSE["Inspect"])
    assert {"ping", "resend"} <= set(cli.COMMANDS_BY_PURPOSE["Act and verify"])


# subscriptions


async def test_subscriptions_show_their_state_and_backlog(one: Backlogs, run: CommandLine) -> None:
    await one.queue(["treasury", "alice"], [1, 2])
    await given_up(one, "bob", 1)
    await fail(one.breakers, "audit", f"status 500 {HOSTILE}")
    ops, audit = (await run("subscriptions", "--json")).objects
    assert ops["url"].startswith("http://127.0.0.1:")
    assert "t0ken" not in json.dumps(ops)
    assert (ops["queues"], ops["deliveries"], ops["dead"], ops["breaker"]) == (2, 4, 1, "closed")
    assert (audit["breaker"], audit["failing_since"] is None, audit["paused_at"]) == (
        "half-open",
        False,
        None,
    )
    text = (await run("subscriptions", "list")).out
    assert re.search(r"^ops +(healthy|delayed) +http://127", text, re.MULTILINE)
    assert "4 waiting in 2 queues, the oldest for" in text
    assert "; 1 dead letter" in text
    assert "breaker half-open: status 500 \\x1b]0;owned\\x07\\u202e; nothing waits; what to do: " in text
    assert (ops["todo"], "`watcher ping audit` tries it" in audit["todo"]) == (None, True)
    assert "t0ken" not in text


async def test_a_chat_subscription_shows_its_service(run: CommandLine, tmp_path: Path) -> None:
    chat = '[[subscriptions]]\nname = "chat"\nurl = "http://127.0.0.1:9/t0ken"\nformat = "slack"\n'
    with (tmp_path / "watcher.toml").open("a") as file:
        file.write(chat)
    assert [line["format"] for line in (await run("subscriptions", "--json")).objects][-1] == "slack"
    text = (await run("subscriptions")).out
    assert "  http://127.0.0.1:9 as slack  " in text
    assert text.count(" as ") == 1


async def test_an_unconfigured_subscription_with_a_backlog_is_listed(one: Backlogs, run: CommandLine) -> None:
    await one.queue(["treasury"], to="gone")
    await pause(one.breakers, "left", "by hand")
    text = (await run("subscriptions")).out
    assert [line.split()[0] for line in text.splitlines()] == [
        "subscription",
        "ops",
        "audit",
        "gone",
        "left",
    ]
    assert text.count("not in the configuration") == 2
    assert (await run("subscriptions", "resume", "left")).code == 0
    assert await one.breakers.read() == {}


async def test_pausing_and_resuming_twice_says_so(one: Backlogs, run: CommandLine) -> None:
    said = [
        (await run("subscriptions", action, "ops")).out for action in ("pause", "pause", "resume", "resume")
    ]
    assert [line.partition(";")[0] for line in said] == [
        "ops: paused",
        "ops: was paused already",
        "ops: resumed",
        "ops: was neither paused nor failing",
    ]
    assert await one.breakers.read() == {}


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


async def until(claim: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not claim():  # noqa: ASYNC110 - what is waited for has no signal
            await asyncio.sleep(0.005)


async def test_events_during_a_pause_are_kept_and_sent_in_order_afterwards(
    rig: Rig, redis_client: Redis, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = CommandLine(rig.settings, tmp_path / "watcher.toml", capsys)
    async with rig.worker() as worker:
        await until(lambda: worker.counters.changes == 2)  # the baselines
        assert (await run("subscriptions", "pause", "ops")).code == 0
        emitted = 0
        while True:  # until the worker has noticed: within a second
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            emitted += 1
            await until(lambda: worker.counters.changes == 2 + emitted)  # noqa: B023 - called in this turn only
            waiting = (await run("deliveries", "--json")).objects
            if waiting and waiting[0]["paused"] and len(waiting) >= 5:
                break
        before = len(rig.receiver.receipts)
        assert before + len(waiting) == emitted
        assert (await run("subscriptions", "resume", "ops")).code == 0
        await rig.events(emitted, within_s=5)
    assert [receipt.order for receipt in rig.receiver.receipts] == [None] * emitted
    assert not any(receipt.is_repeat for receipt in rig.receiver.receipts)


# deliveries


async def test_the_backlog_is_listed_queue_by_queue_with_the_state_of_each_head(
    one: Backlogs, run: CommandLine
) -> None:
    await one.queue(["treasury"], [1, 2])
    await one.queue(["alice"], [7])
    shard = shard_of("treasury")
    (lease,) = (await one.queues.claim("ops", shard, lease_ms=60_000, at_most=1)).leases
    await one.queues.retry("ops", lease, a_sample("treasury", 1).entry, wait_ms=3_600_000)
    rows = (await run("deliveries", "--json")).objects
    assert [(row["account"], row["position"], row["event_id"]) for row in rows] == [
        ("alice", 1, "evt_alice_7"),
        ("treasury", 1, "evt_treasury_1"),
        ("treasury", 2, "evt_treasury_2"),
    ]
    assert [row["failed_attempts"] for row in rows] == [0, 1, 0]
    assert rows[0]["due_in_s"] == 0
    assert 3590 <= rows[1]["due_in_s"] <= 3600
    assert (rows[2]["due_at"], rows[2]["sequence"]) == (None, 2)
    lines = (await run("deliveries")).out.splitlines()
    assert lines[0].split()[3:] == ["event", "type", "sequence", "age", "failed", "due"]
    assert lines[1].endswith("now")
    assert "in 59m" in lines[2] or "in 1h" in lines[2]


async def test_deliveries_are_due_when_the_breaker_of_their_subscription_allows(
    one: Backlogs, run: CommandLine
) -> None:
    await one.queue(["treasury"])
    await fail(one.breakers, "ops", "status 429", open_ms=600_000)
    (row,) = (await run("deliveries", "--json")).objects
    assert 590 <= row["due_in_s"] <= 600
    await pause(one.breakers, "ops", "by hand")
    (row,) = (await run("deliveries", "--json")).objects
    assert (row["due_at"], row["paused"]) == (None, True)
    assert (await run("deliveries")).out.endswith("paused\n")


async def test_deliveries_are_found_by_subscription_and_account_and_bounded(
    one: Backlogs, run: CommandLine
) -> None:
    await one.queue(["shop-1", "shop-2", "treasury"], [1, 2, 3])
    await one.queue(["shop-1"], [9], to="audit")
    assert len((await run("deliveries", "--account", "shop-*", "--json")).objects) == 7
    assert (
        len((await run("deliveries", "--subscription", "o*", "--account", "shop-2", "--json")).objects) == 3
    )
    ended = await run("deliveries", "--limit", "4", "--json")
    assert len(ended.objects) == 4
    assert "there are more" in ended.err
    assert "there are more" not in (await run("deliveries", "--limit", "10")).err
    assert (await run("deliveries", "--account", "nobody")).out == ""


async def test_dropping_the_head_of_a_queue_makes_the_next_delivery_due_at_once(
    one: Backlogs, run: CommandLine
) -> None:
    await one.queue(["treasury"], [1, 2])
    shard = shard_of("treasury")
    (lease,) = (await one.queues.claim("ops", shard, lease_ms=60_000, at_most=1)).leases
    await one.queues.retry("ops", lease, a_sample("treasury", 1).entry, wait_ms=3_600_000)
    ended = await run("deliveries", "give-up", "evt_treasury_2")
    assert (ended.code, ended.out) == (1, "")
    assert "is number 2 of its queue; in front is evt_treasury_1 (" in ended.err
    ended = await run("deliveries", "give-up", "evt_treasury_1")
    said = "ops: evt_treasury_1 of treasury is a dead letter now; 1 delivery left in its queue\n"
    assert (ended.code, ended.out) == (0, said)
    (row,) = (await run("deliveries", "--json")).objects
    assert (row["event_id"], row["failed_attempts"], row["due_in_s"]) == ("evt_treasury_2", 0, 0)
    assert await one.queues.due_subscriptions(shard) == ["ops"]
    (letter,) = (await run("deliveries", "--dead", "--json")).objects
    assert (letter["event_id"], letter["reason"]) == ("evt_treasury_1", "by hand")
    ended = await run("deliveries", "give-up", "evt_treasury_1")
    assert (ended.code, ended.out) == (1, "")
    assert "evt_treasury_1 waits nowhere" in ended.err
    assert (await run("resend", "evt_treasury_1", "--subscription", "ops")).code == 0
    assert [row["event_id"] for row in (await run("deliveries", "--json")).objects] == [
        "evt_treasury_2",
        "evt_treasury_1",
    ]


async def test_an_event_that_waits_for_several_is_dropped_for_the_named_one_only(
    one: Backlogs, run: CommandLine
) -> None:
    for name in ("ops", "audit"):
        await one.queue(["treasury"], to=name)
    ended = await run("deliveries", "give-up", "evt_treasury_1")
    assert (ended.code, ended.out) == (1, "")
    assert "it waits for ops, audit: say which, with --subscription" in ended.err
    ended = await run("deliveries", "give-up", "evt_treasury_1", "--subscription", "ops", "--json")
    assert (ended.code, ended.objects) == (
        0,
        [
            {
                "kind": "given up",
                "subscription": "ops",
                "account": "treasury",
                "position": 1,
                "event_id": "evt_treasury_1",
                "event_type": "total.increased",
                "sequence": 1,
                "given_up": True,
                "in_front": None,
                "left": 0,
            }
        ],
    )
    (row,) = (await run("deliveries", "--json")).objects
    assert row["subscription"] == "audit"


@pytest.mark.parametrize(("answer", "behind"), [(OK, [2]), (REFUSED, [2]), (REFUSED, [])])
async def test_dropping_an_event_in_flight_sends_the_next_one_after_its_attempt(
    redis_client: Redis,
    redis_server_url: str,
    namespace: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    answer: bytes,
    behind: list[int],
) -> None:
    may_answer, ids = asyncio.Event(), list[str]()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.receive()
            ids.append(json.loads(request.body)["id"])
            if len(ids) == 2:
                await may_answer.wait()
            await peer.send(answer if len(ids) == 2 else REFUSED if len(ids) == 1 else OK)

    async with subscribing(script) as subscriber:
        one = backlogs_of(redis_client, redis_server_url, namespace, ops=subscriber.url)
        ops = one.settings.subscription_by_name["ops"]
        update = {"ops": ops.model_copy(update={"retries": seconds(0, 0.02, 3600, 3600)})}
        one = replace(one, settings=one.settings.model_copy(update={"subscription_by_name": update}))
        await one.queue(["treasury"], [1, *behind])
        async with one.worker():
            await until(lambda: len(ids) == 2)
            run = CommandLine(one.settings, tmp_path / "watcher.toml", capsys)
            assert (await run("deliveries", "give-up", "evt_treasury_1")).code == 0
            may_answer.set()
            await until(lambda: len(ids) == 2 + len(behind))
            key = one.keys.queues(shard_of("treasury"), "ops")
            async with asyncio.timeout(10):
                while await one.pipe.command("ZSCORE", key, "treasury"):  # noqa: ASYNC110 - it has no signal
                    await asyncio.sleep(0.005)
    assert ids == ["evt_treasury_1", "evt_treasury_1", *(f"evt_treasury_{number}" for number in behind)]
    assert await redis_client.llen(one.keys.queue("ops", "treasury")) == 0


async def test_dead_letters_are_listed_oldest_first_with_their_reasons(
    one: Backlogs, run: CommandLine
) -> None:
    await given_up(one, "treasury", 1)
    await given_up(one, "alice", 5, reason=f"status 404 {HOSTILE}")
    await given_up(one, "treasury", 2, to="audit")
    rows = (await run("deliveries", "--dead", "--json")).objects
    assert [(row["subscription"], row["event_id"], row["reason"][:10]) for row in rows] == [
        ("ops", "evt_treasury_1", "status 400"),
        ("ops", "evt_alice_5", "status 404"),
        ("audit", "evt_treasury_2", "status 400"),
    ]
    text = (await run("deliveries", "--dead", "--limit", "2")).out
    assert "evt_treasury_1" not in text
    assert "status 404 \\x1b]0;owned\\x07\\u202e" in text


async def test_failed_attempts_are_kept_with_their_answers(
    one: Backlogs, run: CommandLine, subscriber: StagedSubscriber
) -> None:
    subscriber.status = 418
    await one.queue(["treasury"], [1])
    async with one.worker():
        await subscriber.until(lambda: len(subscriber.arrivals) == 2)
        subscriber.status = 200
        await subscriber.until(lambda: len(subscriber.taken) == 1)
    rows = (await run("deliveries", "--attempts", "--json")).objects
    assert [row["status"] for row in rows] == [418] * (len(rows) - 1) + [200]
    assert [row["attempt"] for row in rows] == [*range(1, len(rows) + 1)]
    assert [rows[0]["outcome"], rows[-1]["outcome"]] == ["retry", "delivered"]
    lines = (await run("deliveries", "--attempts")).out.splitlines()
    assert lines[1].endswith("418: what it says")


def test_the_last_attempt_of_a_dead_letter_is_shown_as_given_up() -> None:
    row = {
        "kind": "attempt",
        "subscription": "ops",
        "account": "treasury",
        "event_id": "evt_1",
        "attempt": 10,
        "age_s": 5,
        "duration_ms": 3,
        "outcome": "refused",
        "status": 400,
        "error": None,
        "answer": "",
        "deliveries": 1,
    }
    assert cells(row) == ["ops", "treasury", "evt_1", "10", "5s ago", "3 ms", "given up", "400"]
    assert cells(row | {"deliveries": 20})[2] == "evt_1 and 19 more"


async def test_an_attempt_keeps_the_first_kib_of_its_answer_and_logs_its_beginning(
    one: Backlogs, run: CommandLine, subscriber: StagedSubscriber
) -> None:
    subscriber.status, subscriber.text = 422, "\x1b[31mno " + 3000 * "x"
    await one.queue(["treasury"], [1])
    with structlog.testing.capture_logs() as logged:
        async with one.worker():
            await subscriber.until(lambda: bool(lines_of(logged, "delivery.retried")))
    shown = "\\x1b[31mno xxx"
    [row] = (await run("deliveries", "--attempts", "--json")).objects[:1]
    assert row["answer"].startswith(shown)
    assert 1000 < len(row["answer"]) <= 1024
    text = (await run("deliveries", "--attempts")).out
    assert shown in text
    assert 250 * "x" not in text
    line = plain(lines_of(logged, "delivery.retried")[0])
    assert isinstance(line, dict)
    assert line["answer"].startswith(shown)
    assert len(line["answer"]) <= 200


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("--waiting", "nothing waits\n"),
        ("--dead", "no dead letters\n"),
        ("--attempts", "no attempt that failed is remembered\n"),
    ],
)
async def test_an_empty_list_says_so_to_people(one: Backlogs, run: CommandLine, kind: str, said: str) -> None:
    ended = await run("deliveries", kind)
    assert (ended.code, ended.out, ended.err) == (0, "", said)
    assert (await run("deliveries", kind, "--json")).err == ""


async def test_a_damaged_entry_is_shown_as_such_and_hides_no_other(one: Backlogs, run: CommandLine) -> None:
    await one.queue(["treasury"], [1, 2])
    await given_up(one, "alice", 1)
    shard, keys = shard_of("treasury"), one.keys
    await one.pipe.command("LPUSH", keys.queue("ops", "treasury"), b"\xff\x1b[2J")
    await one.pipe.command("HSET", keys.tries(shard, "ops"), "treasury", b"many\xff")
    await one.pipe.command("XADD", keys.dead(shard, "ops"), "*", "account", b"\x1b[2J", "delivery", b"x")
    for attempt in (b"", b"[]", b"[" * 9999, b'{"status": {"a": 1}, "answer": 7, "account": "\\u001b[2J"}'):
        await one.pipe.command("XADD", keys.attempts(shard, "ops"), "*", "attempt", attempt)
    for kind, count in (("--waiting", 3), ("--dead", 2), ("--attempts", 4)):
        ended = await run("deliveries", kind)
        assert (ended.code, len(ended.out.splitlines()), ended.err) == (0, 1 + count, "")
        assert "\x1b" not in ended.out
        assert len((await run("deliveries", kind, "--json")).objects) == count


async def test_a_resume_sends_waiting_retries_within_two_seconds(
    one: Backlogs, tmp_path: Path, capsys: pytest.CaptureFixture[str], subscriber: StagedSubscriber
) -> None:
    patient = one.settings.subscription_by_name["ops"].model_copy(update={"retries": seconds(0, 20, 20)})
    settings = one.settings.model_copy(update={"subscription_by_name": {"ops": patient}})
    run = CommandLine(settings, tmp_path / "watcher.toml", capsys)
    subscriber.status = 503
    await one.queue(["treasury", "alice"], [1])
    async with replace(one, settings=settings).worker() as worker:
        await subscriber.until(lambda: worker.counters.retried == 2)
        subscriber.status = 200
        assert "what waits is due now" in (await run("subscriptions", "resume", "ops")).out
        await subscriber.until(lambda: len(subscriber.taken) == 2, within_s=5)


# resend


async def entries(one: Backlogs, account: str, to: str = "ops") -> list[bytes]:
    key = one.keys.queue(to, account)
    (alone,) = await one.pipe.command("MGET", key)
    waiting: list[bytes] = [alone] if alone else await one.pipe.command("LRANGE", key, 0, -1)
    return waiting


async def test_resent_dead_letters_go_to_the_end_of_their_queues_and_arrive(
    one: Backlogs, run: CommandLine, subscriber: StagedSubscriber
) -> None:
    await given_up(one, "treasury", 1, 2, 3, 4, 5)
    await given_up(one, "alice", 1)
    await given_up(one, "alice", 1, to="audit")
    await one.queue(["treasury"], [6])
    rehearsed = await run("resend", "--dead", "--subscription", "ops", "--dry-run")
    assert rehearsed.out == "ops: 6 dead letters of 2 accounts would go out again\n"
    assert len((await run("deliveries", "--dead", "--json")).objects) == 7
    ended = await run("resend", "--dead", "--subscription", "ops")
    assert (ended.code, ended.out) == (0, "ops: 6 dead letters of 2 accounts queued again\n")
    queued = (6, 1, 2, 3, 4, 5)
    assert await entries(one, "treasury") == [a_sample("treasury", number).entry for number in queued]
    assert (await run("resend", "--dead", "--subscription", "ops")).out == "ops: nothing queued again\n"
    async with one.worker():
        await subscriber.until(lambda: len(subscriber.taken) == 7)
    sent = {arrival.event["id"]: arrival.body for arrival in subscriber.arrivals}
    owed_of = [a_sample("alice", 1), *(a_sample("treasury", number) for number in queued)]
    assert sent == {delivery.event_id: delivery.body for delivery in owed_of}


async def test_only_dead_letters_of_the_given_time_are_resent(one: Backlogs, run: CommandLine) -> None:
    await a_dead_letter_in(one, shard_of("treasury"), a_sample("treasury", 1), "treasury", at="1000-0")
    await given_up(one, "treasury", 2)
    dead = ("--dead", "--subscription", "ops", "--since")
    assert "1 dead letter of 1 account queued" in (await run("resend", *dead, "1h")).out
    assert await entries(one, "treasury") == [a_sample("treasury", 2).entry]
    assert "1 dead letter of 1 account queued" in (await run("resend", *dead, "1970-01-01")).out


async def test_one_event_is_resent_to_each_subscription_with_its_dead_letter(
    one: Backlogs, run: CommandLine
) -> None:
    await given_up(one, "treasury", 1, 2)
    await given_up(one, "treasury", 2, to="audit")
    said = (await run("resend", "evt_treasury_2", "--json")).objects
    assert [(line["subscription"], line["deliveries"]) for line in said] == [("ops", 1), ("audit", 1)]
    assert await entries(one, "treasury") == [a_sample("treasury", 2).entry]
    left = (await run("deliveries", "--dead", "--json")).objects
    assert [row["event_id"] for row in left] == ["evt_treasury_1"]


async def test_an_unknown_event_is_not_resent(run: CommandLine) -> None:
    ended = await run("resend", f"evt_1{HOSTILE}")
    assert (ended.code, ended.out) == (1, "")
    assert "nothing of evt_1\\x1b]0;owned\\x07\\u202e is left" in ended.err


async def test_an_unreadable_dead_letter_is_not_resent(one: Backlogs, run: CommandLine) -> None:
    key = one.keys.dead(shard_of("treasury"), "ops")
    await one.pipe.command("XADD", key, "*", "account", "treasury", "reason", "no", "delivery", b"\xff")
    # of an account that lives in another shard
    await a_dead_letter_in(one, shard_of("treasury"), a_sample("alice", 1), "alice")
    bodiless = a_sample("treasury", 7).entry
    await one.pipe.command("XADD", key, "*", "account", "treasury", "reason", "no", "delivery", bodiless)
    await given_up(one, "treasury", 1)
    ended = await run("resend", "--dead", "--subscription", "ops")
    assert (ended.code, ended.out) == (1, "ops: 1 dead letter of 1 account queued again\n")
    assert "3 cannot be read" in ended.err
    assert len((await run("deliveries", "--dead", "--json")).objects) == 3


async def test_a_resend_to_a_paused_subscription_says_so(one: Backlogs, run: CommandLine) -> None:
    await given_up(one, "treasury", 1)
    await pause(one.breakers, "ops", "by hand")
    ended = await run("resend", "evt_treasury_1")
    assert ended.code == 0
    assert "ops is paused: they wait for `watcher subscriptions resume ops`" in ended.err


async def test_a_resend_into_a_full_backlog_drops_nothing(
    one: Backlogs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await given_up(one, "treasury", 1, 2)
    await one.queue(["treasury"], [3])
    ops = one.settings.subscription_by_name["ops"].model_copy(update={"max_backlog": 2})
    settings = one.settings.model_copy(update={"subscription_by_name": {"ops": ops}})
    run = CommandLine(settings, tmp_path / "watcher.toml", capsys)
    ended = await run("resend", "--dead", "--subscription", "ops")
    assert (ended.code, ended.out) == (1, "ops: nothing queued again\n")
    assert "no room for more (max_backlog 2): of 1 account all or some are left out: treasury" in ended.err
    assert len(await entries(one, "treasury")) == 1


async def test_events_of_the_log_are_resent_with_the_same_ids_and_bytes(
    rig: Rig, redis_client: Redis, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ops = rig.settings.subscription_by_name["ops"].model_copy(update={"events": ("*",)})
    rig.settings = rig.settings.model_copy(update={"subscription_by_name": {"ops": ops}})
    run = CommandLine(rig.settings, tmp_path / "watcher.toml", capsys)
    async with rig.worker():
        await rig.events(2)  # the baselines
        for number in range(1, 6):
            rig.sandbox.world.credit(TREASURY, "ETH", number)
            await rig.events(2 + number)
    first = list(rig.receiver.events)
    since = ("resend", "--subscription", "ops", "--since")
    assert (await run(*since, "1h", "--dry-run")).out == "ops: 7 events of 2 accounts would go out again\n"
    assert (await run(*since, "2030-01-01")).out == "ops: nothing queued again\n"
    ended = await run(*since, "1h")
    assert (ended.code, ended.out) == (0, "ops: 7 events of 2 accounts queued again\n")
    assert ended.err == "watcher: no worker runs: they go out once one is started\n"
    before = len(rig.receiver.receipts)
    async with rig.worker():
        await until(lambda: len(rig.receiver.receipts) == before + 7)
    assert (await run("resend", first[2]["id"])).out == "ops: 1 event of 1 account queued again\n"
    async with rig.worker():
        await until(lambda: len(rig.receiver.receipts) == before + 8)
    again = list(rig.receiver.receipts)[before:]
    assert all(receipt.is_repeat and receipt.is_verified for receipt in again)
    assert again[-1].event == first[2]
    assert sorted(json.dumps(receipt.event) for receipt in again[:-1]) == sorted(map(json.dumps, first))


async def test_a_queued_event_is_not_queued_a_second_time(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = CommandLine(rig.settings, tmp_path / "watcher.toml", capsys)
    async with rig.worker() as worker:
        await until(lambda: worker.counters.changes == 2)
        for number in range(1, 4):
            rig.sandbox.world.credit(TREASURY, "ETH", number)
            await rig.events(number)
    first, second, _ = (event["id"] for event in rig.receiver.events)
    queued = "ops: 1 event of 1 account queued again\n"
    waits = "watcher: 1 event still waits there, and would not go out twice\n"
    for event_id in (first, second):
        assert (await run("resend", event_id)).out == queued
        ended = await run("resend", event_id)
        assert (ended.code, ended.out) == (0, "ops: nothing queued again\n")
        assert waits in ended.err
    since = ("resend", "--subscription", "ops", "--since", "1h")
    assert (await run(*since, "--dry-run")).out == "ops: 1 event of 1 account would go out again\n"
    [line] = (await run(*since, "--json")).objects
    assert (line["deliveries"], line["waiting"]) == (1, 2)
    assert (await run(*since)).out == "ops: nothing queued again\n"
    before = len(rig.receiver.receipts)
    async with rig.worker():
        await until(lambda: len(rig.receiver.receipts) == before + 3)


async def test_a_dead_letter_whose_event_is_queued_stays_one(one: Backlogs, run: CommandLine) -> None:
    await given_up(one, "treasury", 1, 2)
    await one.queue(["treasury"], [2])
    ended = await run("resend", "--dead", "--subscription", "ops")
    assert ended.out == "ops: 1 dead letter of 1 account queued again\n"
    assert "1 event still waits there" in ended.err
    assert await entries(one, "treasury") == [a_sample("treasury", number).entry for number in (2, 1)]
    assert [row["event_id"] for row in (await run("deliveries", "--dead", "--json")).objects] == [
        "evt_treasury_2"
    ]


async def test_a_damaged_record_is_left_out_and_reported(
    one: Backlogs, run: CommandLine, rig: Rig, redis_client: Redis
) -> None:
    rig.is_damaged = True
    async with rig.worker() as worker:
        await until(lambda: worker.counters.changes == 2)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        await rig.events(1)
    await one.pipe.command("XADD", one.keys.log(0), "*", "account", "treasury", "entry", b"5 {")
    ended = await run("resend", "--since", "1h", "--subscription", "ops")
    assert (ended.code, ended.out) == (1, "ops: 1 event of 1 account queued again\n")
    assert "1 cannot be read and are left out; `watcher audit` says more" in ended.err
    assert [record async for record in History(one.pipe, one.keys).records("treasury")]
