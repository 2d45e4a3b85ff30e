"""Subscribers that answer too much, slowly, wrongly or never: each becomes an attempt in time."""

import asyncio
import gzip
import itertools
import random
from collections.abc import Iterator

import pytest
import uvloop

from tests.support.memory import growing_at_most, held_mib
from tests.support.raw_subscribers import (
    DEADLINE_S,
    EVENT,
    OK,
    SHORT_S,
    Peer,
    Script,
    a_delivery,
    a_sink,
    a_target,
    answering,
    never_answer,
    open_files,
    subscribing,
)
from watcher.delivery.sink import Attempt
from watcher.delivery.webhook import ANSWER_LIMIT, WebhookSink

NO_ANSWER = f"no answer within {SHORT_S} s"
NOT_HTTP = "its answer is not HTTP"
NO_END = "its answer does not end"
SLACK_MS = 1000  # of a machine that does other things as well

LARGE = pytest.mark.filterwarnings("ignore:Sending a large body")  # larger than any event: buffers overflow

ANSWERS: dict[str, tuple[bytes, int | str]] = {
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nfine", 200),
    "interim answers first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: <x>\r\n\r\n" + OK,
        200,
    ),
    "204 with a body": (b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\nhello", 204),
    "204 with a second answer": (
        b"HTTP/1.1 204 None\r\n\r\nHTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        204,
    ),
    "a second answer": (OK + b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", 200),
    "garbage behind it": (OK + b"\x00\xff garbage \r\n\r\n", 200),
    "a chunk of no size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 200),
    "a chunk longer than its size": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        200,
    ),
    "a body shorter than its length": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", 200),
    "a body that is not gzip": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        200,
    ),
    "an odd transfer encoding": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc", 200),
    "odd Retry-After": (
        b"HTTP/1.1 503 No\r\nRetry-After: \xff99 \xe2\x80\xae\r\nContent-Length: 0\r\n\r\n",
        503,
    ),
    "an upgrade": (b"HTTP/1.1 101 Up\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n\x00\x00", 101),
    "an upgrade to nothing": (b"HTTP/1.1 101 Up\r\n\r\n", 101),
    "status 000": (b"HTTP/1.1 000 Zero\r\nContent-Length: 0\r\n\r\n", 0),
    "status 099": (b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n", 99),
    "status 999": (b"HTTP/1.1 999 High\r\nContent-Length: 0\r\n\r\n", 999),
    "status 0": (b"HTTP/1.1 0 Zero\r\nContent-Length: 0\r\n\r\n", NOT_HTTP),
    "status -200": (b"HTTP/1.1 -200 OK\r\nContent-Length: 0\r\n\r\n", NOT_HTTP),
    "status 2000": (b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", NOT_HTTP),
    "garbage": (b"\x00\x01\x02 garbage\r\n\r\n", NOT_HTTP),
    "another protocol": (b"220 mail.example.com ESMTP\r\n", NOT_HTTP),
    "HTTP/0.9": (b"<html>hello</html>\n", NOT_HTTP),
    "HTTP/7.3": (b"HTTP/7.3 200 OK\r\nContent-Length: 0\r\n\r\n", NOT_HTTP),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 200),
    "a length and chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        200,
    ),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 200),
    "a length beyond 64 bits": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", 200),
    "NUL in a header": (b"HTTP/1.1 200 OK\r\nServer: \x00\r\nContent-Length: 0\r\n\r\n", 200),
    "a header without a name": (b"HTTP/1.1 200 OK\r\n: nameless\r\nContent-Length: 0\r\n\r\n", 200),
    "a huge header line": (b"HTTP/1.1 200 OK\r\nServer: " + 60_000 * b"x" + b"\r\n\r\n", 200),
    "100,000 headers": (
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(100_000)) + b"\r\n",
        200,
    ),
    "a cookie over 8 KiB": (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=" + 9_000 * b"x" + b"\r\nContent-Length: 2\r\n\r\nok",
        200,
    ),
    "a header as long as the limit": (
        b"HTTP/1.1 204 None\r\nServer: " + ANSWER_LIMIT * b"x" + b"\r\n\r\n",
        204,
    ),
    "a refusal with odd headers": (b"HTTP/1.1 422 No\r\n\xff\x00: \x01\r\n\r\n", 422),
    "an interim answer, then a huge header": (
        b"HTTP/1.1 103 Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nServer: " + 70_000 * b"x",
        200,
    ),
    "an interim answer with a header that is none": (b"HTTP/1.1 102 Wait\r\n\x00\r\n\r\n", NOT_HTTP),
    "a status line alone": (b"HTTP/1.1 202 Accepted\r\n", 202),
    "half a status line": (b"HTTP/1.1 20", "it closed the connection without an answer"),
    "a status and nothing behind it": (b"HTTP/1.1 200", "it closed the connection without an answer"),
    "nothing": (b"", "it closed the connection without an answer"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", 200),
    "an interim answer only": (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        "it closed the connection without an answer",
    ),
}


def outcome_of(attempt: Attempt) -> int | str | None:
    return attempt.error if attempt.status is None else attempt.status


async def outcome_when(script: Script, sink: WebhookSink) -> int | str | None:
    """Post twice with the same result: a hostile answer must not affect the next attempt."""
    async with subscribing(script) as subscriber:
        target = a_target(subscriber)
        attempts = [await sink.send(target, [a_delivery()], number) for number in (1, 2)]
    assert all(attempt.duration_ms < SLACK_MS for attempt in attempts), "there is nothing to wait for"
    first, second = map(outcome_of, attempts)
    assert first == second
    return first


def saying_and_closing(answer: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(answer)

    return script


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever subscribers do, neither aiohttp nor asyncio has anything to log about it."""
    yield
    assert [record.getMessage() for record in caplog.records] == []


# Answers that are wrong


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("answer", "outcome"), ANSWERS.values(), ids=ANSWERS)
async def test_an_odd_answer_is_a_status_or_an_error_of_the_attempt(
    answer: bytes, outcome: int | str
) -> None:
    async with a_sink() as sink:
        assert await outcome_when(saying_and_closing(answer), sink) == outcome


def test_odd_answers_are_read_the_same_on_the_workers_event_loop() -> None:
    async def outcomes() -> dict[str, int | str | None]:
        async with a_sink() as sink:
            return {
                name: await outcome_when(saying_and_closing(answer), sink)
                for name, (answer, _) in ANSWERS.items()
            }

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(outcomes()) == {name: outcome for name, (_, outcome) in ANSWERS.items()}


@pytest.mark.usefixtures("quiet")
async def test_any_bytes_that_come_back_make_an_attempt() -> None:
    chance = random.Random(20)
    samples = [answer for answer, _ in ANSWERS.values() if len(answer) < 1000]

    async def script(peer: Peer) -> None:
        await peer.receive()
        answer = bytearray(chance.choice(samples))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(answer) + 1)
            answer[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        await peer.send(bytes(answer))

    async with subscribing(script) as subscriber, a_sink() as sink:
        target = a_target(subscriber)
        attempts = [await sink.send(target, [a_delivery()], 1) for _ in range(300)]
    assert all((attempt.status is None) != (attempt.error is None) for attempt in attempts)
    assert len({outcome_of(attempt) for attempt in attempts}) > 5


# Answers that do not end, or not in time


def pouring(first: bytes, piece: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(first)
        await peer.send_endlessly(piece)

    return script


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(10_000_000))

FLOODS: dict[str, tuple[Script, int | str]] = {
    "a body": (pouring(b"HTTP/1.1 200 OK\r\n\r\n", 65_536 * b"x"), 200),
    "a body of a stated length": (
        pouring(b"HTTP/1.1 500 No\r\nContent-Length: 9999999999\r\n\r\n", 65_536 * b"x"),
        500,
    ),
    "chunks": (pouring(CHUNKED, b"10000\r\n" + 65_536 * b"x" + b"\r\n"), 200),
    "tiny chunks": (pouring(CHUNKED, 10_000 * b"1\r\nx\r\n"), 200),
    "a chunk's extension": (pouring(CHUNKED + b"5;", 65_536 * b"x"), 200),
    "trailers": (pouring(CHUNKED + b"0\r\n", 1000 * b"x: 1\r\n"), 200),
    "gzip": (pouring(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", BOMB), 200),
    "answers": (pouring(OK, 1000 * OK), 200),
    "interim answers": (pouring(b"", 1000 * b"HTTP/1.1 100 Continue\r\n\r\n"), NO_END),
    "200,000 interim answers, then one": (
        pouring(200_000 * b"HTTP/1.1 102 Processing\r\n\r\n" + OK, b""),
        NO_END,
    ),
    "headers": (pouring(b"HTTP/1.1 200 OK\r\n", 1000 * b"x: 1\r\n"), 200),
    "a header": (pouring(b"HTTP/1.1 503 No\r\nx: ", 65_536 * b"x"), 503),
    "a reason phrase": (pouring(b"HTTP/1.1 200 ", 65_536 * b"x"), 200),
}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("script", "outcome"), FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_cut_off_at_once_and_uses_no_memory(script: Script, outcome: int | str) -> None:
    async with a_sink() as sink:
        assert await outcome_when(script, sink) == outcome  # whatever is imported or cached is, from now on
        with growing_at_most(8):
            for _ in range(10):
                assert await outcome_when(script, sink) == outcome


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
async def test_a_thousand_floods_leave_no_memory_behind() -> None:
    """Each kind comes in turn; what the first of them left is there to be used again."""

    async def some(count: int) -> None:
        for script, outcome in itertools.islice(itertools.cycle(FLOODS.values()), count):
            async with subscribing(script) as subscriber:
                assert outcome_of(await sink.send(a_target(subscriber), [a_delivery()], 1)) == outcome

    async with a_sink() as sink:
        await some(100)
        before = held_mib()
        await some(1000)
        assert held_mib() - before < 1


async def test_no_more_of_an_answer_is_read_than_the_limit() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % length + length * b"x")
        await peer.receive()
        await peer.send(OK)

    connections = {}
    for length in (ANSWER_LIMIT - 100, ANSWER_LIMIT):
        async with subscribing(script) as subscriber, a_sink() as sink:
            target = a_target(subscriber)
            statuses = [(await sink.send(target, [a_delivery()], 1)).status for _ in range(2)]
            assert statuses[0] == 500
            connections[length] = subscriber.connections
    assert connections == {ANSWER_LIMIT - 100: 1, ANSWER_LIMIT: 2}


@pytest.mark.usefixtures("quiet")
async def test_unsolicited_bytes_on_an_idle_connection_are_not_kept() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(OK)
        await asyncio.sleep(0.01)
        await peer.send_endlessly(1000 * OK)

    async with subscribing(script) as subscriber, a_sink() as sink:
        assert (await sink.send(a_target(subscriber), [a_delivery()], 1)).status == 200
        with growing_at_most(8):
            await asyncio.sleep(0.2)


async def test_a_408_on_an_idle_connection_is_not_the_answer_to_the_next_post() -> None:
    has_spoken = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(OK)
        await asyncio.sleep(0.01)
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        has_spoken.set()
        await peer.wait_for_the_end()

    async with subscribing(script) as subscriber, a_sink() as sink:
        target = a_target(subscriber)
        assert (await sink.send(target, [a_delivery()], 1)).status == 200
        await has_spoken.wait()
        await asyncio.sleep(0.01)
        assert (await sink.send(target, [a_delivery()], 1)).status == 200
        assert subscriber.connections == 2


# Answers that are slow


async def never_answering(peer: Peer) -> None:
    await peer.receive()
    await peer.wait_for_the_end()


async def never_reading(peer: Peer) -> None:
    peer.stop_reading()
    await asyncio.sleep(2 * SHORT_S)
    peer.read_on()
    await peer.wait_for_the_end()


def dripping(first: bytes, drops: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(first)
        await peer.send(*(drops[n : n + 1] for n in range(len(drops))), pause_s=SHORT_S / 5)

    return script


SLOW: dict[str, tuple[Script, int | str]] = {
    "says nothing": (never_answer, NO_ANSWER),
    "says nothing to a request": (never_answering, NO_ANSWER),
    "does not read": (never_reading, NO_ANSWER),
    "drips its status line": (dripping(b"HTT", b"P/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), NO_ANSWER),
    "drips its head": (dripping(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 1000\r\n\r\n"), 200),
    "drips interim answers": (
        dripping(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        NO_ANSWER,
    ),
    "drips its body": (dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 1000 * b"x"), 200),
    "drips its error": (dripping(b"HTTP/1.1 500 No\r\n\r\n", 1000 * b"x"), 500),
    "drips chunks": (dripping(CHUNKED, 1000 * b"1\r\nx\r\n"), 200),
    "keeps its body": (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"), 200),
}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("script", "outcome"), SLOW.values(), ids=SLOW)
async def test_a_slow_subscriber_has_until_the_deadline(script: Script, outcome: int | str) -> None:
    async with subscribing(script) as subscriber, a_sink(deadline_s=SHORT_S) as sink:
        attempt = await sink.send(a_target(subscriber), [a_delivery()], 1)
    assert outcome_of(attempt) == outcome
    assert 0 <= attempt.duration_ms - round(1000 * SHORT_S) + 10 < SLACK_MS


async def test_a_missing_body_does_not_delay_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("watcher.delivery.webhook._BODY_S", 0.05)
    unfinished = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    async with subscribing(unfinished) as subscriber, a_sink() as sink:
        attempt = await sink.send(a_target(subscriber), [a_delivery()], 1)
    assert attempt.status == 200
    assert attempt.duration_ms < SLACK_MS


@pytest.mark.parametrize("body", [b"zz\r\n", b"2\r\nabc\r\n", b"5;" + 100_000 * b"x"])
async def test_a_broken_body_is_not_waited_for(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("watcher.delivery.webhook._BODY_S", DEADLINE_S)
    async with subscribing(answering(CHUNKED + body)) as subscriber, a_sink() as sink:
        attempt = await sink.send(a_target(subscriber), [a_delivery()], 1)
    assert attempt.status == 200
    assert attempt.duration_ms < SLACK_MS


# Connections that end


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("hears", "says", "outcome"),
    [
        (False, b"", "it reset the connection"),
        (True, b"", "it reset the connection"),
        (True, b"HTTP/1.1 20", "it reset the connection"),
        (True, b"HTTP/1.1 200 OK\r\nConte", 200),
        (True, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", 200),
        (True, OK, 200),
        (True, b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal", 500),
    ],
)
async def test_a_reset_ends_the_attempt_and_an_earlier_status_counts(
    hears: bool, says: bytes, outcome: int | str
) -> None:
    async def script(peer: Peer) -> None:
        if hears:
            await peer.receive()
        await peer.send(says)
        await asyncio.sleep(0.02)
        peer.reset()

    async with a_sink() as sink:
        assert await outcome_when(script, sink) == outcome


@LARGE
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("size", [len(EVENT), 20_000, 20_000_000])
@pytest.mark.parametrize(
    ("hangs_up", "outcomes"),
    # The system may throw away what came before a reset, and hanging up on unread bytes is one.
    [(False, {413}), (True, {413, "it reset the connection"})],
)
async def test_an_answer_before_the_request_was_read_counts(
    size: int, hangs_up: bool, outcomes: set[int | str]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too much\r\nContent-Length: 2\r\n\r\nno")
        if not hangs_up:
            await peer.wait_for_the_end()

    async with subscribing(script) as subscriber, a_sink() as sink:
        attempt = await sink.send(a_target(subscriber), [a_delivery(content=size * b"x")], 1)
    assert outcome_of(attempt) in outcomes


@LARGE
async def test_unread_data_holds_no_connection_open() -> None:
    is_counted = asyncio.Event()

    async def script(peer: Peer) -> None:
        peer.stop_reading()
        await is_counted.wait()

    async with subscribing(script) as subscriber, a_sink(deadline_s=0.1) as sink:
        before = open_files()
        attempt = await sink.send(a_target(subscriber), [a_delivery(content=20_000_000 * b"x")], 1)
        await asyncio.sleep(0.01)
        assert attempt.error in ("no answer within 0.1 s", "no connection within 0.1 s")
        assert open_files() - before <= 1  # the subscriber's end
        is_counted.set()


async def test_an_attempt_cut_off_by_our_shutdown_does_not_count() -> None:
    async with subscribing(never_answering) as subscriber, a_sink() as sink:
        post = asyncio.create_task(sink.send(a_target(subscriber), [a_delivery()], 1))
        await subscriber.until(lambda subscriber: len(subscriber.requests) == 1)
        post.cancel()
        with pytest.raises(asyncio.CancelledError):
            await post
