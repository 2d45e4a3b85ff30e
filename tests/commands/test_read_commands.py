"""The read commands: audit, balances, events and status, as a shell would run them."""

import asyncio
import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.support.builders import a_balance, a_row, a_snapshot, a_subscription
from tests.support.events_schema import assert_valid
from tests.support.rig import ALICE, TREASURY, Rig, a_rig
from tests.support.stores import fail, pause
from tests.support.stories import (
    NOW_MS,
    STORY,
    Books,
    Ended,
    Run,
    Write,
    a_configuration,
    a_ms_later,
    ended,
    in_the_books,
    records_of,
    steps,
)
from watcher.commands._table import backlog_text
from watcher.journal.events import Origin, iso
from watcher.journal.interest import Interest
from watcher.journal.step import go_stale
from watcher.snapshot import Asset, Snapshot
from watcher.store.embedded import Embedded
from watcher.store.keys import shard_of
from watcher.store.members import Configurations, Fingerprint, Presence, Workers
from watcher.store.pipe import Pipe
from watcher.store.queues import Breakers

HOSTILE = Asset("7", "\x1b]0;owned\x07", "=HYPERLINK(1)", 0)
LOOPRING, SHOP = "/api/v3/user/balances", "/v2/app/coin/balance"
LOOK = ("audit", "balances", "deliveries", "events", "status")


@pytest.fixture
def config(tmp_path: Path, redis_server_url: str, namespace: str) -> Path:
    return a_configuration(tmp_path, redis_server_url, namespace, "treasury", "alice", "bob")


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda name, *arguments: ended(capsys, name, "--config", config, *arguments)


async def two_accounts(books: Books) -> None:
    await books.enroll("treasury", "alice", "bob")
    await books.live(STORY)
    await a_ms_later(books.pipe)
    await books.live([a_snapshot(ETH="1"), a_snapshot(ETH="2")], "alice")


def text_of(ended: Ended) -> str:
    return ended.out + ended.err


# audit


def test_an_audit_passes_committed_events_and_says_since_when(run: Run, write: Write) -> None:
    write(two_accounts)
    done = run("audit")
    assert done.code == 0
    assert done.lines == [
        "account   verdict  because",
        f"treasury  ok       {len(records_of(steps(STORY)))} records since 2026-11-20T11:44:55Z, "
        "beginning with its baseline",
        "alice     ok       2 records since 2026-11-20T11:44:55Z, beginning with its baseline",
        "bob       ok       no record of it is kept",
    ]
    assert done.err == "3 of 3 accounts add up\n"


async def delete_a_record_of_alice(books: Books) -> None:
    await two_accounts(books)
    key = books.keys.log(shard_of("alice"))
    entries = await books.pipe.command("XRANGE", key, "-", "+")
    (alices,) = (entry_id for entry_id, fields in entries if fields[1] == b"alice" and b" evt_" in fields[3])
    await books.damage("XDEL", key, alices)


def test_an_audit_finds_what_is_missing_and_exits_with_1(run: Run, write: Write) -> None:
    write(delete_a_record_of_alice)
    done = run("audit", "--json")
    assert done.code == 1
    assert [(found["account"], found["ok"]) for found in done.objects] == [
        ("treasury", True),
        ("alice", False),
        ("bob", True),
    ]
    assert [finding["asset"] for finding in done.objects[1]["findings"]] == [None, "ETH"]
    assert "alice    DIFFERS  ETH: the state has published total 2 instead of 1\n" in run("audit", "a*").out
    assert run("audit", "treasury").code == 0


def test_an_audit_says_that_a_log_was_trimmed_only_where_it_was(run: Run, write: Write) -> None:
    async def never_read(books: Books) -> None:
        await books.enroll("bob")
        origin = Origin("bob", "loopring", 0, NOW_MS, NOW_MS)
        ops = Interest({"ops": a_subscription(events=("*",))})
        how: dict[str, Any] = {"interest": ops, "version": f"{1:016x}", "now_ms": NOW_MS}
        await books.commit(go_stale(None, origin, "gone", "no connection", **how), "bob")

    write(never_read)
    assert "beginning with its first: no balance is known yet" in run("audit", "bob").out


def test_an_audit_of_an_unreadable_state_says_so(run: Run, write: Write) -> None:
    async def damaged(books: Books) -> None:
        await two_accounts(books)
        await books.damage_state("alice")

    write(damaged)
    done = run("audit", "alice")
    assert done.code == 1
    assert done.lines[1:] == ["alice    DIFFERS  its state is not readable: JSONDecodeError"]


def test_an_audit_shows_a_few_findings_of_many(run: Run, write: Write) -> None:
    async def emptied(books: Books) -> None:
        await books.live(STORY)
        key = books.keys.log(shard_of("treasury"))
        for entry_id, _ in (await books.pipe.command("XRANGE", key, "-", "+"))[2::2]:
            await books.damage("XDEL", key, entry_id)

    write(emptied)
    _, *shown = run("audit", "treasury").lines
    assert len(shown) == 6
    assert shown[-1].endswith("more ways; --json lists all")
    assert len(run("audit", "treasury", "--json").objects[0]["findings"]) > 6


def test_an_audit_of_a_part_of_the_log_takes_the_balance_before_it_as_given(run: Run, write: Write) -> None:
    async def lacking(books: Books, place: int) -> list[str]:
        key = books.keys.log(shard_of("treasury"))
        ids = [entry_id for entry_id, _ in await books.pipe.command("XRANGE", key, "-", "+")]
        await books.damage("XDEL", key, ids[place])
        return [iso(int(entry_id.partition(b"-")[0])) for entry_id in ids]

    async def lacking_an_early_record(books: Books) -> list[str]:
        await books.live(STORY)
        return await lacking(books, 1)

    times = write(lacking_an_early_record)
    since = times[-3]
    assert run("audit", "treasury").code == 1
    done = run("audit", "treasury", "--since", since)
    assert (done.code, "with its balances then, taken as given" in done.out) == (0, True)
    (line,) = run("audit", "treasury", "--since", since, "--json").objects
    assert (line["from_baseline"], line["records"]) == (False, sum(time >= since for time in times))
    write(lambda books: lacking(books, -1))
    assert run("audit", "treasury", "--since", since).code == 1
    assert "nothing to prove" in run("audit", "treasury", "--since", "1ms").out
    assert run("audit", "--store", "--since", since).code == 2


async def test_an_audit_beside_a_busy_worker_finds_nothing(
    redis_client: Any, namespace: str, redis_server_url: str, tmp_path: Path
) -> None:
    """It reads the state and the log at different times, and must compare them as of one."""
    from watcher.commands.audit import _audit
    from watcher.config.loading import load

    books = Books(Pipe(redis_client), namespace)
    settings = load(a_configuration(tmp_path, redis_server_url, namespace), {}).settings
    made = steps([a_snapshot(ETH=str(number)) for number in range(1, 100)])
    await books.commit(made[0])
    audits = 0

    async def work() -> None:
        for before, step in pairwise(made):
            await books.commit(step, expected=before.state.version)

    async with asyncio.TaskGroup() as group:
        working = group.create_task(work())
        while not working.done():
            assert not (await _audit(settings, ["treasury"]))["treasury"].findings
            audits += 1
    assert audits > 1


async def test_an_audit_passes_the_work_of_a_worker(redis_server_url: str, namespace: str) -> None:
    from watcher.commands.audit import _audit

    async with a_rig(redis_server_url, namespace) as rig, rig.worker():
        await polled_twice(rig)
        for move, number in ((rig.sandbox.world.deposit_seen, 1), (rig.sandbox.world.deposit_cleared, 2)):
            move(TREASURY, "LRC", "12.5")
            await rig.events(number)
        rig.sandbox.world.credit(ALICE, "MK", "3.25")
        await rig.events(3)
        verdicts = await _audit(rig.settings, ["treasury", "alice"])
        assert [(verdict.records, verdict.findings) for verdict in verdicts.values()] == [(3, []), (2, [])]
        for receipt in rig.receiver.receipts:
            assert_valid(json.dumps(receipt.event).encode())


async def polled_twice(rig: Rig) -> None:
    """Wait for the baselines: the first polls are committed before the second ones are made."""
    async with asyncio.timeout(10):
        while min(map(rig.sandbox.traffic.count, (LOOPRING, SHOP))) < 2:  # noqa: ASYNC110 - it only counts
            await asyncio.sleep(0.005)


# balances


async def pending_and_suspect(books: Books) -> None:
    polls = [
        a_snapshot(LRC=a_balance("100", "1", pending_deposit="5"), ETH="7"),
        a_snapshot(LRC=a_balance("100", "1", pending_deposit="0"), ETH="0"),
    ]
    await books.live(polls, at_ms=int(time.time() * 1000) - 200_000)


def test_balances_show_accepted_amounts_and_those_not_emitted_yet(run: Run, write: Write) -> None:
    write(pending_and_suspect)
    header, eth, lrc, alice, bob = (re.split(r"  +", line.strip()) for line in run("balances").lines)
    assert header == [
        *("account", "asset", "total", "locked", "available", "pending in", "pending out"),
        *("read", "not emitted yet"),
    ]
    assert eth[:7] == ["treasury", "ETH", "7", "0", "7", "0", "0"]
    assert lrc[:7] == ["treasury", "LRC", "100", "1", "99", "0", "0"]
    assert eth[8] == "suspect: total 0"
    assert lrc[8] == "pending confirmation for 1 poll: pending_deposit -5"
    assert re.fullmatch(r"2m \d+s", eth[7])
    assert alice == ["alice", *"-------", "not read yet"]
    assert bob[0] == "bob"


def test_a_suddenly_empty_listing_shows_the_last_balances_as_suspect(run: Run, write: Write) -> None:
    polls = [a_snapshot(LRC="100", ETH="0"), a_snapshot()]
    write(lambda books: books.live(polls))
    eth, lrc = (
        {**line, "asset": line["asset"]["id"]} for line in run("balances", "treasury", "--json").objects
    )
    assert (eth["asset"], eth["total"], eth["suspect"]) == ("ETH", "0", None)
    assert (lrc["asset"], lrc["total"], lrc["suspect"]["total"]) == ("LRC", "100", "0")
    assert (
        run("balances", "treasury").lines[2].split("  ")[-1].startswith("suspect: total 0; the listing names")
    )
    (line,) = [line for line in run("status", "--json").objects if line.get("account") == "treasury"]
    assert "suspect" in line["problems"]
    assert re.match(r"lists nothing since 20\S+Z: it must do so for a minute to count", line["reason"])
    assert run("audit", "treasury").lines[1].startswith("treasury  ok")


def test_balances_as_json_have_one_object_per_asset(run: Run, write: Write) -> None:
    write(pending_and_suspect)
    eth, lrc, alice, _ = run("balances", "--json").objects
    assert lrc["asset"] == {"id": "LRC", "symbol": None, "name": None, "decimals": 0}
    assert lrc["pending_confirmation"] == {
        "total": "0",
        "locked": "0",
        "pending_deposit": "-5",
        "pending_withdrawal": "0",
    }
    assert (lrc["confirmation_polls"], lrc["suspect"], eth["pending_confirmation"]) == (1, None, None)
    assert eth["suspect"]["total"] == "0"
    assert 138 <= eth["age_s"] <= 160
    assert alice == {"account": "alice", "provider": "loopring", "note": "not read yet"}


def test_balances_as_csv_have_a_header_and_no_formulas(run: Run, write: Write) -> None:
    async def hostile(books: Books) -> None:
        row = a_row(HOSTILE, a_balance("1", "0", None, None))
        await books.live([Snapshot({"7": row}, None, absent_is_zero=True)])

    write(hostile)
    done = run("balances", "--csv", "treasury")
    (row,) = csv.DictReader(io.StringIO(done.out))
    assert (row["account"], row["asset"], row["total"], row["pending_deposit"]) == ("treasury", "7", "1", "")
    assert row["name"] == "'=HYPERLINK(1)"
    assert "\x1b" not in done.out


def test_an_account_that_is_overdrawn_is_shown_emitted_and_proven_like_any_other(
    run: Run, write: Write
) -> None:
    async def overdrawn(books: Books) -> None:
        await books.enroll("treasury")
        await books.live([a_snapshot(USD=total) for total in ("5", "-3", "-4.5", "10", "-0.25")])

    write(overdrawn)
    types = ["total.decreased", "total.decreased", "total.increased", "total.decreased"]
    said = run("events", "--account", "treasury", "--type", "total.*", "--json").objects
    assert [(one["type"], one["data"]["amount"], one["data"]["after"]["available"]) for one in said] == [
        *zip(types, ("8", "1.5", "14.5", "10.25"), ("-3", "-4.5", "10", "-0.25"), strict=True)
    ]
    (line,) = run("balances", "treasury").lines[1:]
    assert line.split()[1:5] == ["USD", "-0.25", "0", "-0.25"]
    (row,) = csv.DictReader(io.StringIO(run("balances", "--csv", "treasury").out))
    assert (row["total"], row["available"]) == ("-0.25", "-0.25")
    assert run("audit", "treasury").code == 0


def test_balances_of_an_unknown_account_are_a_usage_error(run: Run, write: Write) -> None:
    done = run("balances", "tresury*")
    assert done.code == 2
    assert "no account of the configuration is called 'tresury*'" in done.err
    assert run("balances", "--json", "--csv").code == 2


def test_a_provider_without_pending_fields_shows_none_rather_than_zero(run: Run, write: Write) -> None:
    async def shop(books: Books) -> None:
        await books.live([a_snapshot(MK=a_balance("1", "0", None, None))])

    write(shop)
    assert re.split(r"  +", run("balances", "treasury").lines[1])[2:7] == ["1", "0", "1", "-", "-"]


# events


def test_events_are_shown_oldest_first_over_all_accounts(run: Run, write: Write) -> None:
    write(two_accounts)
    done = run("events")
    shown = [line.split()[1:3] for line in done.lines[1:]]
    assert shown[0] == ["treasury", "total.increased"]
    assert shown[-1] == ["alice", "total.increased"]
    assert done.lines[1].startswith("2026-11-20T11:45:55Z  treasury ")
    assert re.search(r" 10  ETH +total \+10  +#1795175155846  evt_[a-z2-7]{24}$", done.lines[1])
    assert run("events", "--wide").lines[1].startswith("2026-11-20T11:45:55.846Z  treasury ")


def test_events_as_json_are_the_bodies_that_were_sent(run: Run, write: Write) -> None:
    write(two_accounts)
    sent = [event for step in steps(STORY) for event in step.events if event.type != "account.baseline"]
    assert run("events", "--json", "--account", "treasury").objects == [
        json.loads(event.json) for event in sent
    ]


def test_events_are_chosen_by_type_account_time_and_number(run: Run, write: Write) -> None:
    write(two_accounts)
    deposits = run("events", "--type", "deposit.*", "--json").objects
    assert [event["type"] for event in deposits] == ["deposit.pending", "deposit.cleared"]
    nothing = run("events", "--account", "bob")
    assert (nothing.out, nothing.err) == ("", "no such event in the log\n")
    nobody = run("events", "--account", "nobody")
    assert (nobody.code, nobody.err) == (
        2,
        "Error: no account is called 'nobody'; `watcher accounts` lists all\n",
    )
    assert run("events", "--account", "bob", "--json") == Ended(0, "", "")
    latest = [line.split() for line in run("events", "--limit", "3").lines]
    assert latest[1:] == [line.split() for line in run("events").lines[-3:]]
    assert run("events", "--since", "1h").lines == run("events").lines
    assert run("events", "--since", "2100-01-01").out == ""
    assert run("events", "--since", "0s").out == ""
    (baseline,) = run("events", "--type", "baseline", "--account", "alice", "--json").objects
    assert (baseline["account"], baseline["assets"]) == ("alice", {"ETH": ["1", "0", "0", "0"]})
    assert not run("events", "--type", "account.*", "--account", "alice", "--json").objects, "not emitted"


@pytest.mark.parametrize("since", ["yesterday", "1 hour", "-1h", "10"])
def test_an_invalid_time_is_a_usage_error(run: Run, since: str) -> None:
    done = run("events", "--since", since)
    assert done.code == 2
    assert "write how long ago" in done.err


def test_hostile_text_is_escaped_everywhere(run: Run, write: Write) -> None:
    async def hostile(books: Books) -> None:
        rows = [Snapshot({"7": a_row(HOSTILE, total)}, None, absent_is_zero=True) for total in ("1", "2")]
        await books.live(rows)
        log = books.keys.log(shard_of("treasury"))
        record = b'5 {"type": "\\u001b[2J", "id": "\\u009b", "data": {"asset": {"symbol": "\\u202e"}}}'
        await books.damage("XADD", log, "*", "account", "treasury\x1b", "entry", record)

    write(hostile)
    for arguments in (("events",), ("events", "--json"), ("balances",), ("balances", "--json"), ("audit",)):
        done = run(*arguments)
        assert all(letter.isprintable() for line in text_of(done).split("\n") for letter in line), arguments


def test_an_unreadable_record_is_skipped_and_named(run: Run, write: Write) -> None:
    async def damaged(books: Books) -> None:
        await two_accounts(books)
        log = books.keys.log(shard_of("treasury"))
        await books.damage("XADD", log, "*", "account", "treasury", "entry", "5 {")

    write(damaged)
    done = run("events")
    assert done.code == 0
    assert "cannot be read; `watcher audit`" in done.err
    assert len(done.lines[1:]) == len(records_of(steps(STORY)))
    assert run("audit").code == 1


def test_follow_shows_new_events_until_ctrl_c(config: Path, write: Write) -> None:
    made = steps([a_snapshot(ETH="1"), a_snapshot(ETH="2"), a_snapshot(ETH="3")])

    async def begin(books: Books) -> None:
        await books.commit(made[0])
        await books.commit(made[1], expected=made[0].state.version)

    async def go_on(books: Books) -> None:
        await books.commit(made[2], expected=made[1].state.version)

    write(begin)
    command = (sys.executable, "-m", "watcher", "events", "--config", str(config), "--follow", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["data"]["after"]["total"] == "2"
        write(go_on)
        assert json.loads(process.stdout.readline())["data"]["after"]["total"] == "3"
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == b""


# status


async def present(
    books: Books,
    host: str,
    *,
    version: str = "0.1.0",
    roster: str = "a",
    rates: Mapping[str, float] = MappingProxyType({}),
    configuration: str = "",
) -> None:
    """A worker that has run for an hour."""
    hour_ago_ms = int(time.time() * 1000) - 3_600_000
    one = Presence(
        f"{host}-7", host, 7, version, hour_ago_ms, dict(rates), roster, configuration=configuration
    )
    await Workers(books.pipe, books.keys).note(one)


def test_status_shows_everything_on_one_screen(run: Run, write: Write) -> None:
    async def failing_parts(books: Books) -> None:
        await two_accounts(books)
        lease = await books.lease("bob")
        await books.polls.postpone(
            "loopring", lease, why="auth a wrong key", at_least_ms=0, waits_ms=[99_000]
        )
        await books.damage("XADD", books.keys.dead(3, "ops"), "*", "account", "alice")
        await pause(Breakers(books.pipe, books.keys), "ops", "410 Gone\x1b")
        for number in (1, 2):
            await present(books, f"web-{number}", rates={"loopring": 0.05})

    write(failing_parts)
    done = run("status")
    assert done.code == 0
    screen = done.out
    assert "workers        2 running, version 0.1.0\n" in screen
    assert re.search(r"^                 web-2 pid 7, up 1h 0m, seen [0-2]s ago$", screen, re.MULTILINE)
    assert re.search(r"^server         unix:///\S+$", screen, re.MULTILINE)
    assert re.search(r"^               valkey 9\S*: a restart of Redis loses all state", screen, re.MULTILINE)
    provider = "loopring: 3 accounts scheduled, 1 failing; needs 0.1 requests/s, 4 allowed, makes 0.1\n"
    assert f"provider       {provider}" in screen
    assert re.search(
        r"^                 1 auth: a wrong key, since 2\S+Z: fix the key in \[providers\.loopring\]$",
        screen,
        re.MULTILINE,
    )
    assert "accounts       0 of 3 healthy\n" in screen
    assert re.search(r"^                 never read +1  bob$", screen, re.MULTILINE)
    assert re.search(r"^                 stale +2  treasury, alice$", screen, re.MULTILINE)
    assert re.search(
        r"^                 ops: \d+ deliveries in 2 queues, the oldest for .*; 1 dead letter$",
        screen,
        re.MULTILINE,
    )
    assert "  paused since " in screen
    assert "\x1b" not in screen


def test_an_account_that_waits_for_confirmation_is_listed_as_healthy(run: Run, write: Write) -> None:
    async def half_of_a_deposit(books: Books) -> None:
        polls = [a_snapshot(LRC=a_balance("100", pending_deposit=amount)) for amount in ("5", "0")]
        await books.live(polls, at_ms=int(time.time() * 1000) - 60_000)

    write(half_of_a_deposit)
    screen = run("status").out
    assert "accounts       1 of 3 healthy\n" in screen  # the other two were never read
    assert re.search(r"^                 pending confirmation +1  treasury$", screen, re.MULTILINE)


@pytest.mark.parametrize(("owed", "listed"), [(False, ["ops"]), (True, ["ops", "gone"])])
def test_a_removed_subscription_is_listed_while_anything_of_it_is_kept(
    run: Run, write: Write, *, owed: bool, listed: list[str]
) -> None:
    async def taken_out(books: Books) -> None:
        await two_accounts(books)
        await books.damage("ZADD", books.keys.due_subscriptions(3), 0, "gone")
        if owed:
            await books.damage("XADD", books.keys.dead(3, "gone"), "*", "account", "alice")

    write(taken_out)
    objects = run("status", "--json").objects
    assert [line["subscription"] for line in objects if line["kind"] == "subscription"] == listed
    assert [line["subscription"] for line in run("subscriptions", "--json").objects] == listed


def test_nothing_of_a_paused_subscription_is_listed_as_retrying() -> None:
    line: dict[str, Any] = {"queues": 1, "oldest_s": 3, "retrying": 1, "dead": 0, "paused_at": None}
    assert (
        backlog_text(line, "2 waiting")
        == "2 waiting in 1 queue, the oldest for 3s; 1 queue being tried again"
    )
    line["paused_at"] = "2026-11-20T14:03:05.120Z"
    assert backlog_text(line, "2 waiting") == "2 waiting in 1 queue, the oldest for 3s"


def test_status_as_json_has_a_kind_on_every_line(run: Run, write: Write) -> None:
    write(pending_and_suspect)
    write(lambda books: present(books, "web-1"))
    objects = run("status", "--json").objects
    assert [line["kind"] for line in objects] == [
        *("server", "worker", "provider", "accounts", "account", "account", "account", "subscription")
    ]
    problems = {line["account"]: line["problems"] for line in objects if line["kind"] == "account"}
    assert problems == {
        "treasury": ["stale", "suspect", "pending confirmation"],
        "alice": ["never read"],
        "bob": ["never read"],
    }


def test_status_names_an_account_that_is_quarantined(run: Run, write: Write) -> None:
    async def damaged(books: Books) -> None:
        await two_accounts(books)
        await books.damage_state("alice")

    write(damaged)
    (alice,) = (line for line in run("status", "--json").objects if line.get("account") == "alice")
    assert alice["problems"] == ["quarantined"]
    assert alice["reason"] == "not readable: JSONDecodeError"


def test_status_says_that_no_worker_runs_and_which_one_did(run: Run, write: Write) -> None:
    assert "workers        none runs: nothing is polled and nothing delivered; start `watcher run`" in (
        run("status").out
    )

    async def killed(books: Books) -> None:
        await present(books, "web-1")
        (one,) = await books.pipe.command("HVALS", books.keys.workers())
        seen_ms, _, said = one.partition(b" ")
        await books.damage("HSET", books.keys.workers(), "web-1-7", b"%d %s" % (int(seen_ms) - 600_000, said))

    write(killed)
    done = run("status").out
    assert "workers        none runs" in done
    assert re.search(
        r"web-1 pid 7, up 50m 0s, seen 10m [0-2]s ago: it was killed, or cannot reach Redis", done
    )


def test_status_says_that_versions_differ_and_names_few_of_many_workers(run: Run, write: Write) -> None:
    async def many(books: Books) -> None:
        for number in range(9):
            await present(books, f"web-{number}\x1b[2J", version=f"0.{number % 2}.0")

    write(many)
    screen = run("status").out
    assert "workers        9 running, version 0.0.0, 0.1.0\n" in screen
    assert "                 and 5 more\n" in screen
    assert "\x1b" not in screen


def test_status_says_that_workers_have_different_accounts(run: Run, write: Write) -> None:
    write(lambda books: present(books, "web-1"))
    assert "differ" not in run("status").out
    write(lambda books: present(books, "web-2", roster="b"))
    assert "                 their lists of accounts differ: is a deploy under way?" in run("status").lines


def test_status_names_what_workers_configure_differently_and_each_configuration(
    run: Run, write: Write
) -> None:
    here = Fingerprint({"loopring": "a", "shop": "b"}, {"ops": "c"}, {"treasury": "d"})
    there = here._replace(providers={"loopring": "x", "shop": "b"}, subscriptions={"ops": "y"})
    there = Fingerprint(*there)

    async def two_places(books: Books) -> None:
        for number, one in enumerate((here, here, there)):
            await Configurations(books.pipe, books.keys).write(one)
            await present(books, f"web-{number}", configuration=one.digest)

    write(two_places)
    done = run("status")
    assert "  error: 1 worker with another configuration: another target for" in done.out
    assert "    provider loopring, subscription ops: for each, one is inactive" in done.out
    assert f"configuration {here.digest[:8]}, seen" in done.out.replace(", up 1h 0m", "")
    (line,) = (one for one in run("status", "--json").objects if one["kind"] == "configuration")
    assert line["names"] == ["provider loopring", "subscription ops"]
    assert line["workers"] == ["web-2-7"]
    assert {line["configuration"], line["differs_from"]} == {here.digest, there.digest}


@pytest.mark.parametrize(
    ("rates", "made", "text"),
    [
        ([], None, "needs 0.1 requests/s, 4 allowed\n"),
        ([{}], None, "needs 0.1 requests/s, 4 allowed\n"),
        ([{"other": 1.0}], 0, "needs 0.1 requests/s, 4 allowed, makes 0\n"),
        ([{"loopring": 1.0}, {"loopring": 2.5}, {}], 3.5, "needs 0.1 requests/s, 4 allowed, makes 3.5\n"),
    ],
)
def test_status_shows_a_providers_rate_as_far_as_workers_know_it(
    run: Run, write: Write, rates: list[dict[str, float]], made: float | None, text: str
) -> None:
    async def measured(books: Books) -> None:
        for number, each in enumerate(rates):
            await present(books, f"web-{number}", rates=each)

    write(measured)
    assert text in run("status").out
    (line,) = (line for line in run("status", "--json").objects if line["kind"] == "provider")
    shown = [line[f"{name}_per_second"] for name in ("requests", "needed", "used")]
    assert shown == [4, 0.1, made]


def test_status_says_when_accounts_need_more_requests_than_their_provider_allows(
    run: Run, write: Write, config: Path
) -> None:
    config.write_text(
        config.read_text().replace("[providers.loopring]", "[providers.loopring]\nrequests_per_second = 0.1")
    )
    assert "too few requests for so many accounts" in run("status").out


def test_status_fits_on_one_screen_however_much_is_wrong(
    run: Run, write: Write, tmp_path: Path, config: Path
) -> None:
    config.write_text(
        config.read_text()
        + "".join(
            f'[[subscriptions]]\nname = "sub-{number}"\nurl = "https://ops.example.com/in"\n'
            'secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]\n'
            for number in range(20)
        )
    )

    async def all_bad(books: Books) -> None:
        breakers = Breakers(books.pipe, books.keys)
        await pause(breakers, "sub-7", "410 Gone")
        for number in range(10):
            await fail(breakers, f"sub-{number}", "503", open_ms=60_000)

    write(all_bad)
    lines = run("status").lines
    assert len(lines) <= 24
    assert "subscriptions  11 of 21 healthy" in lines
    assert lines[lines.index("subscriptions  11 of 21 healthy") + 1].startswith(" " * 17 + "sub-7: ")
    assert lines[-1] == "                 and 4 more; `watcher subscriptions` lists all"


@pytest.mark.parametrize(
    ("problem", "command"),
    [
        ("stopped", "watcher run"),
        ("failing", "watcher check --connect"),
        ("paused", "watcher subscriptions resume ops"),
        ("retrying", "watcher deliveries --attempts"),
        ("dead", "watcher deliveries --dead"),
        ("pending confirmation", "watcher balances"),
        ("well", "watcher events --follow"),
    ],
)
def test_status_names_the_command_that_helps_with_the_worst_problem(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch, problem: str, command: str
) -> None:
    async def failing_parts(books: Books) -> None:
        breakers = Breakers(books.pipe, books.keys)
        if problem != "stopped":
            await present(books, "web-1")
        if problem == "failing":
            await books.enroll("bob")
            await books.polls.postpone(
                "loopring", await books.lease("bob"), why="gone", at_least_ms=0, waits_ms=[99_000]
            )
        if problem == "paused":
            await pause(breakers, "ops", "410 Gone")
        if problem == "retrying":
            await fail(breakers, "ops", "503", open_ms=60_000)
        if problem == "dead":
            await books.damage("XADD", books.keys.dead(3, "ops"), "*", "account", "alice")
        if problem == "well":
            for name in ("treasury", "alice", "bob"):
                await books.live([a_snapshot(ETH="1")], name, at_ms=int(time.time() * 1000))
        else:
            await pending_and_suspect(books)

    write(failing_parts)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("status").err == f"next: {command}\n"


@pytest.mark.parametrize("width", [40, 60])
def test_status_fits_a_narrow_terminal_without_losing_a_word(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    async def failing_parts(books: Books) -> None:
        await two_accounts(books)
        await pause(Breakers(books.pipe, books.keys), "ops", "410 Gone, and it will not come back to us")

    write(failing_parts)
    whole = run("status", "--wide").out
    monkeypatch.setattr("watcher.commands._table.terminal_width", lambda: width)
    lines = run("status").lines
    assert max(map(len, lines)) <= width
    words = [word for word in whole.split() if not re.search(r"[\d/]", word)]
    assert [word for word in " ".join(lines).split() if not re.search(r"[\d/]", word)] == words


def test_status_says_when_no_worker_polls(run: Run, write: Write) -> None:
    async def abandoned(books: Books) -> None:
        await books.enroll("treasury", "alice", "bob")
        for name in ("treasury", "alice", "bob"):
            key = books.keys.polls(shard_of(name), "loopring")
            await books.damage("ZADD", key, int(time.time() * 1000) - 600_000, name)

    write(abandoned)
    assert "the next poll is 10m 0s late: does a worker run, and keep up?" in run("status").out


# all of them


@pytest.mark.parametrize("name", LOOK)
def test_an_unreachable_server_is_one_line_and_exit_code_69(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = a_configuration(tmp_path, f"unix://{tmp_path}/nobody", "x")
    done = ended(capsys, name, "--config", config)
    assert (done.code, done.out) == (69, "")
    assert done.err == f"watcher: Redis at {tmp_path}/nobody cannot be reached; is it running?\n"


@pytest.mark.parametrize("name", LOOK)
def test_a_state_of_another_version_is_refused_with_exit_code_78(name: str, run: Run, write: Write) -> None:
    async def other(books: Books) -> None:
        await books.damage("HSET", books.keys.meta(), "shards", 32, "schema", 2)

    write(other)
    done = run(name)
    assert (done.code, done.out) == (78, "")
    assert "laid out by another version of watcher" in done.err


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *((name, "meta") for name in LOOK),
        *(("status", key) for key in ("breakers", "workers")),
        ("events", "log"),
        ("audit", "log"),
        ("deliveries", "due_subscriptions"),
    ],
)
def test_a_key_of_another_type_is_one_line_and_exit_code_69(
    name: str, key: str, run: Run, write: Write
) -> None:
    async def damaged(books: Books) -> None:
        named = getattr(books.keys, key)
        await books.damage("SET", named(7) if key in ("log", "due_subscriptions") else named(), "x")

    write(damaged)
    done = run(name)
    assert done.code == 69
    assert "Traceback" not in done.err
    assert "is not of watcher's type (WRONGTYPE): restore it or delete it" in done.err.splitlines()[-1]


@pytest.mark.parametrize("name", LOOK)
def test_a_mistake_in_the_configuration_is_shown_with_exit_code_78(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(capsys, name, "--config", tmp_path / "none.toml").code == 78


@pytest.mark.parametrize("name", LOOK)
def test_read_commands_write_nothing(name: str, run: Run, write: Write, namespace: str) -> None:
    assert run(name).code == 0

    async def keys(books: Books) -> list[bytes]:
        return list(await books.pipe.command("KEYS", f"{namespace}:*"))

    assert write(keys) == []


@pytest.mark.parametrize("name", LOOK)
def test_people_see_the_next_command_and_programs_do_not(
    name: str, run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(two_accounts)
    assert "next: watcher" not in text_of(run(name))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "next: watcher " in run(name).err


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("balances", "treasry"), "no account of the configuration is called 'treasry'"),
        (("audit", "treasry"), "no account of the configuration is called 'treasry'"),
        (("events", "--account", "alice", "--account", "treasry", "--type", "threshold.*"), "treasry"),
        (("events", "--account", "treasry"), "no account is called 'treasry'"),
        (("events", "--account", "treasry", "--json"), "no account is called 'treasry'"),
        (("events", "--account", "treasry", "--follow"), "no account is called 'treasry'"),
        (("deliveries", "--account", "treasry"), "no account is called 'treasry'"),
        (("deliveries", "--dead", "--account", "treasry"), "no account is called 'treasry'"),
    ],
    ids=str,
)
def test_a_mistyped_account_is_one_line_with_the_nearest_name(
    arguments: tuple[str, ...], shown: str, run: Run, write: Write
) -> None:
    write(two_accounts)
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: ")
    assert shown in done.err
    assert done.err.endswith("; did you mean 'treasury'?\n")
    assert len(done.err.splitlines()) == 1


def test_a_mistyped_event_type_is_one_line_with_the_nearest_type(run: Run, write: Write) -> None:
    write(two_accounts)
    done = run("events", "--type", "total.increase")
    assert (done.code, done.out) == (2, "")
    assert done.err == "Error: no type of event is called 'total.increase'; did you mean 'total.increased'?\n"


def test_a_glob_without_a_match_is_no_mistake(run: Run, write: Write) -> None:
    write(two_accounts)
    for arguments in (("--type", "withdrawal.*"), ("--account", "bo*"), ("--type", "forgotten")):
        done = run("events", *arguments)
        assert (done.code, done.out, done.err) == (0, "", "no such event in the log\n")


@pytest.mark.parametrize("name", LOOK)
@pytest.mark.parametrize("state", [two_accounts, pending_and_suspect])
def test_next_commands_never_lead_in_a_circle(
    state: Callable[[Books], Any], name: str, run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(state)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    been = [name]
    while found := re.search(r"^next: watcher ([^,\n]+)", run(*shlex.split(been[-1])).err, re.MULTILINE):
        been.append(found[1])
        if been[-1].split()[0] not in LOOK or "--follow" in been[-1]:
            break
    assert len({*been}) == len(been) > 1, been


@pytest.mark.parametrize("arguments", [("balances", "--csv"), *((name, "--json") for name in LOOK)], ids=str)
def test_advice_never_mixes_with_data(
    arguments: tuple[str, ...], run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(two_accounts)
    quiet = run(*arguments)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    advised = run(*arguments)
    assert "next: watcher " in advised.err
    assert "next:" not in advised.out
    assert len(advised.lines) == len(quiet.lines) > 0


def test_no_secret_shows(run: Run, write: Write) -> None:
    write(two_accounts)
    for name in LOOK:
        for more in ((), ("--json",)):
            assert not re.search("canary|whsec|ops.example", text_of(run(name, *more)))


# the embedded server


def test_an_embedded_server_is_found_whether_or_not_a_worker_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = a_configuration(tmp_path, "embedded", "watcher")

    async def worked() -> None:
        async with Embedded(tmp_path / "data") as server:
            await asyncio.to_thread(in_the_books, server.url, "watcher", two_accounts)
            beside = await asyncio.to_thread(ended, capsys, "balances", "--config", config, "--json")
            assert beside.objects[0]["asset"]["id"] == "ETH"
            assert (await asyncio.to_thread(ended, capsys, "audit", "--config", config)).code == 0

    asyncio.run(worked())
    alone = ended(capsys, "audit", "--config", config)
    assert alone.code == 0
    assert "beginning with its baseline" in alone.out
    assert not (tmp_path / "data" / "server.sock").exists()  # the only command that used it has stopped it


@pytest.mark.parametrize("name", LOOK)
def test_a_read_command_makes_no_embedded_server(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = a_configuration(tmp_path, "embedded", "watcher")
    done = ended(capsys, name, "--config", config)
    assert done.code == 69
    assert f"the embedded server has no state in {tmp_path / 'data'} yet" in done.err
    assert not (tmp_path / "data").exists()
