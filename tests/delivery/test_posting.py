"""One attempt as a subscriber sees it, and what is recorded of it."""

import asyncio
import re

import pytest
from pydantic import SecretStr

from tests.support.builders import SECRET, a_subscription
from tests.support.raw_subscribers import (
    CONTENT,
    EVENT,
    LOOPBACK,
    OK,
    TAIL,
    FakeDns,
    Peer,
    Request,
    Script,
    a_delivery,
    a_sink,
    a_target,
    answering,
    subscribing,
)
from watcher import __version__
from watcher.delivery.signing import new_secret
from watcher.delivery.sink import LONGEST_RETRY_AFTER_S, Attempt
from watcher.delivery.webhook import EXCERPT_LIMIT, WebhookTarget
from watcher.printable import hide
from watcher.receive import TOLERANCE_S, InvalidWebhook, verify

NOW = 1_795_183_385
AN_HOUR_S = 3600


def an_answer(status: int, body: bytes = b"", *headers: bytes) -> bytes:
    lines = (b"HTTP/1.1 %d Well" % status, b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def attempt_at(script: Script, **fields: object) -> tuple[Attempt, Request]:
    """Post once, and return what was written down and what was received."""
    async with subscribing(script) as subscriber, a_sink() as sink:
        attempt = await sink.send(a_target(subscriber, **fields), [a_delivery()], 1)
    return attempt, subscriber.requests[0]


# What is sent


async def test_the_headers_are_those_of_the_protocol_only() -> None:
    async with subscribing(answering(OK)) as subscriber, a_sink(unix_time=lambda: NOW + 0.9) as sink:
        attempt = await sink.send(a_target(subscriber), [a_delivery("evt_7")], 3)
    assert attempt.status == 200
    [request] = subscriber.requests
    assert request.head.startswith(b"POST /in HTTP/1.1\r\n")
    signature = request.headers["webhook-signature"]
    assert request.headers == {
        "host": f"127.0.0.1:{subscriber.port}",
        "accept": "*/*",
        "content-type": "application/json",
        "content-length": str(len(EVENT)),
        "user-agent": f"watcher/{__version__}",
        "webhook-id": "evt_7",
        "webhook-timestamp": str(NOW),
        "webhook-signature": signature,
        "watcher-attempt": "3",
    }
    assert re.fullmatch(r"v1,[A-Za-z0-9+/]{43}=", signature)


async def test_a_receiver_verifies_what_arrives() -> None:
    async with subscribing(answering(OK)) as subscriber, a_sink() as sink:
        await sink.send(a_target(subscriber), [a_delivery()], 1)
    [request] = subscriber.requests
    assert verify(request.headers, request.body, [SECRET])["id"] == "evt_1"


async def test_all_secrets_sign() -> None:
    old, new = new_secret(), new_secret()
    async with subscribing(answering(OK)) as subscriber, a_sink() as sink:
        secrets = {"secrets": (SecretStr(new), SecretStr(old))}
        target = WebhookTarget(a_subscription(url=subscriber.url).model_copy(update=secrets), LOOPBACK)
        await sink.send(target, [a_delivery()], 1)
    [request] = subscriber.requests
    for secret in (old, new):
        assert verify(request.headers, request.body, [secret])


async def test_headers_from_the_settings_are_sent() -> None:
    _, request = await attempt_at(
        answering(OK), headers={"Authorization": "Bearer abc", "Accept-Encoding": "gzip", "Accept": "x/y"}
    )
    assert request.headers["authorization"] == "Bearer abc"
    assert request.headers["accept-encoding"] == "gzip"
    assert request.headers["accept"] == "x/y"


@pytest.mark.parametrize("content", [CONTENT, b"\x00\xff\r\n\r\n", "ä€😀".encode(), 19_999 * b"x"])
async def test_the_bytes_signed_are_the_bytes_sent_on_every_attempt(content: bytes) -> None:
    async with subscribing(answering(an_answer(500), an_answer(503), OK)) as subscriber, a_sink() as sink:
        target = a_target(subscriber)
        for number in (1, 2, 3):
            await sink.send(target, [a_delivery(content=content)], number)
    assert [request.body for request in subscriber.requests] == 3 * [content + TAIL]
    for request in subscriber.requests:
        timestamp = int(request.headers["webhook-timestamp"])
        signature = target.signer.signature("evt_1", timestamp, request.body)
        assert request.headers["webhook-signature"] == signature
    assert [request.headers["watcher-attempt"] for request in subscriber.requests] == ["1", "2", "3"]
    assert {request.headers["webhook-id"] for request in subscriber.requests} == {"evt_1"}


async def test_a_later_attempt_is_signed_with_its_own_time() -> None:
    clock = [float(NOW)]
    async with (
        subscribing(answering(an_answer(500), OK)) as subscriber,
        a_sink(unix_time=lambda: clock[0]) as sink,
    ):
        for number in (1, 2):
            await sink.send(a_target(subscriber), [a_delivery()], number)
            clock[0] += 10 * AN_HOUR_S
    first, second = subscriber.requests
    later = NOW + 10 * AN_HOUR_S
    for now in (later - TOLERANCE_S, later, later + TOLERANCE_S):
        assert verify(second.headers, second.body, [SECRET], now=now)
        with pytest.raises(InvalidWebhook):
            verify(first.headers, first.body, [SECRET], now=now)
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]


# What is not done


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_is_not_followed(status: int) -> None:
    async with subscribing(answering(OK)) as canary:
        elsewhere = an_answer(status, b"", f"Location: {canary.url}".encode())
        async with subscribing(answering(elsewhere)) as subscriber, a_sink() as sink:
            attempt = await sink.send(a_target(subscriber), [a_delivery()], 1)
        assert await canary.visits() == 0
    assert attempt.status == status
    assert attempt.reason.startswith(
        f"status {status}; redirects are not followed: write the URL that it redirects to"
    )
    assert len(subscriber.requests) == 1


async def test_a_cookie_is_never_sent_back() -> None:
    setting = OK.replace(
        b"\r\n\r\n", b"\r\nSet-Cookie: a=b; Path=/\r\nSet-Cookie: c=d; Domain=example\r\n\r\n"
    )
    dns = FakeDns({"one.example": ["127.0.0.1"], "two.example": ["127.0.0.1"]})
    async with subscribing(answering(setting)) as subscriber, a_sink(resolver=dns) as sink:
        for host in ("one.example", "two.example", "one.example", "127.0.0.1"):
            attempt = await sink.send(a_target(subscriber.url_at(host)), [a_delivery()], 1)
            assert attempt.status == 200
    assert len(subscriber.requests) == 4
    assert not any("cookie" in request.headers for request in subscriber.requests)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
async def test_a_proxy_from_the_environment_is_not_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    async with subscribing(answering(OK)) as canary:
        monkeypatch.setenv(name, canary.url)
        attempt, _ = await attempt_at(answering(OK))
        assert await canary.visits() == 0
    assert attempt.status == 200


# One instant second try


CLOSING = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


def dying_after(answers: int, *, by_reset: bool = False, after_s: float = 0) -> Script:
    """Answer so many requests on the first connection, read one more, and hang up; answer all others."""

    async def script(peer: Peer) -> None:
        if peer.number > 1:
            await answering(OK)(peer)
        for _ in range(answers):
            await peer.receive()
            await peer.send(OK)
        await peer.receive()
        await asyncio.sleep(after_s)
        if by_reset:
            peer.reset()

    return script


@pytest.mark.parametrize("by_reset", [False, True])
async def test_an_idle_connection_that_turns_out_closed_is_replaced_at_once(by_reset: bool) -> None:
    async with subscribing(dying_after(1, by_reset=by_reset)) as subscriber, a_sink() as sink:
        target = a_target(subscriber)
        await sink.send(target, [a_delivery("evt_1")], 1)
        attempt = await sink.send(target, [a_delivery("evt_2")], 4)
    assert attempt.status == 200
    _, lost, again = subscriber.requests
    assert (lost.connection, again.connection) == (1, 2)
    assert again.body == lost.body
    assert again.headers == lost.headers, "one attempt, not two"
    assert again.headers["watcher-attempt"] == "4"
    assert verify(again.headers, again.body, [SECRET])


@pytest.mark.parametrize("by_reset", [False, True])
async def test_a_new_connection_that_dies_gets_no_second_try(by_reset: bool) -> None:
    async with subscribing(dying_after(0, by_reset=by_reset)) as subscriber, a_sink() as sink:
        attempt = await sink.send(a_target(subscriber), [a_delivery()], 1)
    assert attempt.error in ("it closed the connection without an answer", "it reset the connection")
    assert len(subscriber.requests) == 1


async def test_there_is_one_second_try() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        if peer.number == 1:
            await peer.send(OK)
            await peer.receive()

    async with subscribing(script) as subscriber, a_sink() as sink:
        target = a_target(subscriber)
        await sink.send(target, [a_delivery()], 1)
        attempt = await sink.send(target, [a_delivery()], 1)
    assert attempt.error == "it closed the connection without an answer"
    assert [request.connection for request in subscriber.requests] == [1, 1, 2]


async def test_the_second_try_does_not_meet_another_old_connection() -> None:
    is_crowded = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        if len(peer.subscriber.requests) == 5:
            is_crowded.set()
        await is_crowded.wait()
        await peer.send(OK if peer.number <= 5 else CLOSING)
        if peer.number <= 5:
            await peer.receive()

    async with subscribing(script) as subscriber, a_sink() as sink:
        target = a_target(subscriber)
        await asyncio.gather(*(sink.send(target, [a_delivery()], 1) for _ in range(5)))
        attempts = [await sink.send(target, [a_delivery()], 1) for _ in range(5)]
    assert [attempt.status for attempt in attempts] == 5 * [200]
    assert len(subscriber.requests) == 5 + 2 * 5


async def test_an_old_connection_that_took_its_time_to_die_is_a_failed_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("watcher.http.pool._AGAIN_WITHIN_S", 0.05)
    async with subscribing(dying_after(1, after_s=0.1)) as subscriber, a_sink() as sink:
        target = a_target(subscriber)
        await sink.send(target, [a_delivery()], 1)
        attempt = await sink.send(target, [a_delivery()], 1)
    assert attempt.error == "it closed the connection without an answer"
    assert len(subscriber.requests) == 2


async def test_the_second_try_shares_the_deadline() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        if peer.number == 1:
            await peer.send(OK)
            await peer.receive()
            await asyncio.sleep(0.5)
        else:
            await peer.wait_for_the_end()

    async with subscribing(script) as subscriber, a_sink(deadline_s=0.8) as sink:
        target = a_target(subscriber)
        await sink.send(target, [a_delivery()], 1)
        attempt = await sink.send(target, [a_delivery()], 1)
    assert attempt.error == "no answer within 0.8 s"
    assert attempt.duration_ms < 1000 * (0.5 + 0.8)
    assert len(subscriber.requests) == 3


async def test_a_connection_that_closed_while_idle_is_not_used() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(OK)

    async with subscribing(script) as subscriber, a_sink() as sink:
        target = a_target(subscriber)
        for _ in range(3):
            assert (await sink.send(target, [a_delivery()], 1)).status == 200
            await asyncio.sleep(0.01)
    assert [request.connection for request in subscriber.requests] == [1, 2, 3]


async def test_a_connection_is_used_again() -> None:
    short = an_answer(500, b"no room")
    async with subscribing(answering(OK, short, OK)) as subscriber, a_sink() as sink:
        for _ in range(5):
            await sink.send(a_target(subscriber), [a_delivery()], 1)
    assert subscriber.connections == 1


# What is written down of an answer


async def test_a_failed_attempt_keeps_the_beginning_of_the_answer() -> None:
    attempt, _ = await attempt_at(answering(an_answer(422, b'{"error": "unknown account"}')))
    assert (attempt.status, attempt.error) == (422, None)
    assert attempt.excerpt == '{"error": "unknown account"}'


@pytest.mark.parametrize("status", [200, 201, 299])
async def test_the_answer_of_a_first_success_is_not_kept(status: int) -> None:
    attempt, _ = await attempt_at(answering(an_answer(status, b"thank you")))
    assert (attempt.status, attempt.excerpt) == (status, "")


@pytest.mark.parametrize(
    "body",
    [
        b"\x00\x1b[31mred\x1b[0m\r\n\x7f",
        "\u202ereversed\u2028\x9b31m".encode(),
        b"\xff\xfe\xed\xa0\x80 not text",
        60_000 * b"x",
        60_000 * b"\x1b",
        60_000 * "ä".encode(),
        b"x" + 60_000 * "😀".encode(),
    ],
)
async def test_an_excerpt_is_short_and_printable(body: bytes) -> None:
    attempt, _ = await attempt_at(answering(an_answer(500, body)))
    assert 0 < len(attempt.excerpt.encode()) <= EXCERPT_LIMIT
    assert attempt.excerpt.isprintable()


async def test_the_first_kib_of_an_answer_is_kept() -> None:
    body = b"".join(b"%d " % number for number in range(1000))
    attempt, _ = await attempt_at(answering(an_answer(500, body)))
    assert EXCERPT_LIMIT - 4 < len(attempt.excerpt) <= EXCERPT_LIMIT
    assert body.decode().startswith(attempt.excerpt[:-4])


async def test_the_answer_of_a_later_success_is_kept() -> None:
    async with subscribing(answering(an_answer(202, b"queued"))) as subscriber, a_sink() as sink:
        attempt = await sink.send(a_target(subscriber), [a_delivery()], 2)
    assert (attempt.status, attempt.excerpt) == (202, "queued")


async def test_a_large_cookie_hides_neither_retry_after_nor_the_body_and_keeps_the_connection() -> None:
    cookie = b"Set-Cookie: session=" + 20_000 * b"x"
    busy = an_answer(429, b"slow down", cookie, b"Retry-After: 7")
    async with (
        subscribing(answering(busy, an_answer(200, b"ok", cookie))) as subscriber,
        a_sink() as sink,
    ):
        attempts = [await sink.send(a_target(subscriber), [a_delivery()], number) for number in (1, 2)]
    assert [attempt.status for attempt in attempts] == [429, 200]
    assert (attempts[0].retry_after_s, attempts[0].excerpt) == (7, "slow down")
    assert subscriber.connections == 1


async def test_a_request_that_an_old_connection_answered_is_not_sent_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(OK)
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\nConte")

    async with subscribing(script) as subscriber, a_sink() as sink:
        statuses = [(await sink.send(a_target(subscriber), [a_delivery()], 1)).status for _ in range(2)]
    assert statuses == [200, 200]
    assert len(subscriber.requests) == 2


async def test_the_part_of_a_broken_body_that_came_is_kept() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\nout of", b" order", pause_s=0.01)

    attempt, _ = await attempt_at(script)
    assert attempt.excerpt == "out of order"


@pytest.mark.parametrize("before", [0, 190, 1000, 1020, 4090])
async def test_a_receiver_that_repeats_our_headers_puts_no_secret_into_an_excerpt(before: int) -> None:
    token = "Bearer 0123456789-0123456789"
    hide([token])
    body = before * b"x" + f"you sent {token}".encode()
    attempt, _ = await attempt_at(answering(an_answer(401, body)), headers={"Authorization": token})
    assert attempt.status == 401
    assert "Bearer" not in attempt.excerpt


@pytest.mark.parametrize(
    ("wish", "wish_s"),
    [
        (b"120", 120),
        (b"Fri, 20 Nov 2026 14:03:35 GMT", 30),
        (b"99999999", LONGEST_RETRY_AFTER_S),
        (b"soon", None),
    ],
)
async def test_retry_after_is_recorded_in_the_attempt(wish: bytes, wish_s: float | None) -> None:
    script = answering(an_answer(429, b"", b"Retry-After: " + wish))
    async with subscribing(script) as subscriber, a_sink(unix_time=lambda: NOW) as sink:
        attempt = await sink.send(a_target(subscriber), [a_delivery()], 1)
    assert attempt.retry_after_s == wish_s
