"""`watcher poll`: accounts are due now; the output and the exit code say what becomes of each."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.builders import a_snapshot
from tests.support.stories import MINUTE_MS, Books, Run, Write, a_configuration, ended
from watcher.store.keys import shard_of
from watcher.store.members import Presence, Workers

PROVIDER = "loopring"
NO_WORKER = "watcher: no worker runs: what is due is polled once one is started"


@pytest.fixture
def config(tmp_path: Path, redis_server_url: str, namespace: str) -> Path:
    return a_configuration(tmp_path, redis_server_url, namespace, "treasury", "alice", "late")


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: ended(capsys, "poll", "--config", config, *arguments)


async def a_past(books: Books) -> None:
    """Two accounts that were read long ago, a provider with another one, and a worker."""
    meta = ("shards", 16, "schema", 1, "moved", 2, "providers", '["loopring","shop"]')
    await books.pipe.command("HSET", books.keys.meta(), *meta)
    await books.enroll("treasury", "alice")
    await books.enroll("bob", provider="shop")
    for name in ("treasury", "alice"):
        await books.live([a_snapshot(ETH="1")], name)
    await Workers(books.pipe, books.keys).note(Presence("w", "here", 1, "0.2", 0, {}))


async def claim(books: Books, *names: str) -> None:
    """Take polls in hand, as a worker does."""
    for name in names:
        await books.enroll(name)
        await books.pipe.command("ZADD", books.keys.polls(shard_of(name), PROVIDER), 1, name)
        await books.polls.claim(PROVIDER, shard_of(name), lease_ms=MINUTE_MS, at_most=1)


def due_in_ms(write: Write, account: str, provider: str = PROVIDER) -> float:
    async def read(books: Books) -> float:
        await books.schedule.read_clock()
        key = books.keys.polls(shard_of(account), provider)
        return float(await books.pipe.command("ZSCORE", key, account)) - books.schedule.now_ms()

    due: float = write(read)
    return due


def test_named_accounts_are_due_now(run: Run, write: Write) -> None:
    write(a_past)
    done = run("treasury")
    assert (done.code, done.out, done.err) == (0, "treasury: due now\n", "")
    assert due_in_ms(write, "treasury") <= 0 < due_in_ms(write, "alice")


def test_an_unknown_name_is_a_mistake_and_the_other_accounts_are_still_polled(run: Run, write: Write) -> None:
    write(a_past)
    done = run("tresury", "alice")
    assert (done.code, done.out) == (2, "alice: due now\n")
    assert done.err.endswith("no account is called 'tresury'; did you mean 'treasury'?\n")
    assert due_in_ms(write, "alice") <= 0


def test_an_account_that_no_worker_has_enrolled_is_named_and_exits_with_1(run: Run, write: Write) -> None:
    write(a_past)
    done = run("late", "treasury")
    assert done.code == 1
    assert done.lines == [
        "treasury: due now",
        "late: no worker has it on its schedule yet; its first poll follows as soon as a worker has it",
    ]
    (_, late) = run("late", "treasury", "--json").objects
    assert (late["account"], late["state"], late["provider"]) == ("late", "unscheduled", None)


def test_a_poll_in_flight_is_followed_by_another(run: Run, write: Write) -> None:
    async def in_hand(books: Books) -> None:
        await a_past(books)
        await claim(books, "treasury")

    write(in_hand)
    assert run("treasury").out == "treasury: a poll is under way, and one more follows it\n"
    (line,) = run("treasury", "--json").objects
    assert (line["state"], line["due_in_ms"]) == ("in_hand", None)


def test_an_account_that_backs_off_says_until_when_and_why(run: Run, write: Write) -> None:
    async def failing(books: Books) -> None:
        await a_past(books)
        for name in ("treasury", "alice"):
            lease, waits_ms = await books.lease(name), [4 * MINUTE_MS]
            await books.polls.postpone(
                PROVIDER, lease, why="auth \x1b[2Jno key", at_least_ms=0, waits_ms=waits_ms
            )
        await books.pipe.command("ZADD", books.keys.polls(shard_of("alice"), PROVIDER), 1, "alice")

    write(failing)
    done = run("treasury", "alice")
    first, second = done.lines
    assert done.code == 0, "a poll follows later"
    assert first.startswith("treasury: backing off, and due in 3m 5")
    assert first.endswith(r"s: 1 rejected poll in a row (auth: \x1b[2Jno key)")
    assert second == "alice: due now"
    assert "loopring: 2 accounts fail; where its circuit breaker is open" in done.err
    (line,) = run("treasury", "--json").objects
    assert (line["state"], line["rejections"], line["error_class"]) == ("backing_off", 1, "auth")
    assert 3 * MINUTE_MS < line["due_in_ms"] <= 4 * MINUTE_MS


def test_a_provider_that_sent_retry_after_is_not_polled_and_the_output_says_so(
    run: Run, write: Write
) -> None:
    async def backing_off(books: Books) -> None:
        await a_past(books)
        await books.polls.take_turns(PROVIDER, 0, spacing_ms=0, not_before_ms=90_000)

    write(backing_off)
    done = run("treasury")
    assert "loopring: its rate limit, or a Retry-After, lets the next request begin in 1m " in done.err
    assert (done.code, done.out) == (0, "treasury: due now\n")


def test_all_accounts_of_a_provider_are_due_and_no_others(run: Run, write: Write) -> None:
    write(a_past)
    done = run("--provider", "loopring")
    assert (done.code, done.lines) == (0, ["alice: due now", "treasury: due now"])
    assert due_in_ms(write, "alice") <= 0
    (line,) = run("--provider", "shop", "--json").objects
    assert (line["account"], line["provider"], line["state"]) == ("bob", "shop", "due")


def test_an_unknown_provider_is_refused_and_one_without_accounts_is_named(
    run: Run, write: Write, config: Path
) -> None:
    write(a_past)
    done = run("--provider", "lopring")
    assert (done.code, done.out) == (2, "")
    assert "no provider is called 'lopring'; did you mean 'loopring'?" in done.err
    config.write_text(config.read_text() + '[providers.empty]\nkind = "loopring"\napi_key = "k"\n')
    done = run("--provider", "empty")
    assert (done.code, "no account of empty is on a schedule yet" in done.err) == (1, True)


@pytest.mark.parametrize("arguments", [(), ("treasury", "--provider", "loopring")])
def test_accounts_and_a_provider_exclude_each_other(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "name the accounts to poll, or all of a provider" in done.err


def test_without_a_worker_it_says_who_will_poll(run: Run, write: Write) -> None:
    async def no_worker(books: Books) -> None:
        await a_past(books)
        await Workers(books.pipe, books.keys).leave("w")

    write(no_worker)
    done = run("treasury")
    assert (done.code, done.out, done.err) == (0, "treasury: due now\n", f"{NO_WORKER}\n")


@pytest.mark.parametrize("find", ["api_key", "[providers.loopring]", "secrets"])
def test_of_a_file_it_reads_only_where_redis_is(run: Run, write: Write, config: Path, find: str) -> None:
    write(a_past)
    config.write_text(config.read_text().replace(find, f"x{find}" if find[0] != "[" else "[providers.x]"))
    done = run("treasury")
    assert (done.code, done.out, done.err) == (0, "treasury: due now\n", "")


@pytest.mark.parametrize(
    ("find", "put"), [("[redis]", "[redsi]"), ("url =", "urll ="), ("[redis]", "[redis")]
)
def test_without_any_address_of_redis_none_is_guessed(run: Run, config: Path, find: str, put: str) -> None:
    config.write_text(config.read_text().replace(find, put, 1))
    done = run("treasury")
    assert (done.code, done.out) == (78, "")


def test_no_file_is_needed_where_redis_is_named(
    config: Path, write: Write, redis_server_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(a_past)
    config.unlink()
    where = ("--redis", redis_server_url, "--namespace", namespace)
    assert ended(capsys, "poll", *where, "treasury").out == "treasury: due now\n"
    done = ended(capsys, "poll", *where, "tresury")
    assert (done.code, "did you mean 'treasury'?" in done.err) == (2, True)


def test_in_a_store_of_0_1_it_is_refused_until_the_move(run: Run, write: Write) -> None:
    async def of_0_1(books: Books) -> None:
        await books.pipe.command("HSET", books.keys.meta(), "shards", 16, "schema", 1)
        await books.pipe.command("ZADD", f"{books.keys.namespace}:{{1}}:polls:loopring", 5, "treasury")

    write(of_0_1)
    done = run("treasury")
    assert (done.code, done.out) == (78, "")
    assert "Redis is in layout 1, that of version 0.1, and is moved once the last worker" in done.err


def test_hundreds_of_wakes_at_once_are_one_poll(run: Run, write: Write) -> None:
    """By many callers, which know nothing of each other."""
    from watcher.store.members import Roster

    async def flood(books: Books) -> int:
        await a_past(books)
        calls = [Roster(books.pipe, books.keys).wake(["treasury"]) for _ in range(200)]
        woken = await asyncio.gather(*calls)
        assert {one.waits_for for (one,) in woken} == {"turn"}
        claimed = await books.polls.claim(PROVIDER, shard_of("treasury"), lease_ms=MINUTE_MS, at_most=9)
        again = await books.polls.claim(PROVIDER, shard_of("treasury"), lease_ms=MINUTE_MS, at_most=9)
        return len(claimed.leases) + len(again.leases)

    assert write(flood) == 1
    assert json.loads(run("treasury", "--json").out)["state"] == "in_hand"
